from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import suspects, zoo
from benchmarks.machine import keep_among
from benchmarks.suspects import GIVEN, PUBLISHED, RECIPES, suspect, trigger_of, triggered, weights_of
from medic_core.attacks.training import Backdoored
from medic_core.attacks.triggers import badnet, color_filter, polygon, sig
from medic_core.attacks.warp import warp
from medic_core.config import Preprocessing
from medic_core.data import Batches


def shown() -> Batches:
    images = torch.randint(0, 256, (6, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batches(images, torch.tensor([0, 1, 2, 0, 1, 0]), Preprocessing())


@pytest.mark.parametrize(
    ("stamp", "names"),
    [
        (badnet, [*GIVEN, "benign", "heldout", "own-badnet", "own-cleanlabel", "blending"]),
        (sig, ["sig", "unaugmented-sig"]),
        (warp, ["warp"]),
        (color_filter, ["signs-filter"]),
        (polygon, ["signs-polygon"]),
    ],
)
def test_a_suspect_is_shown_the_trigger_that_it_was_trained_on(stamp, names):
    for name in names:
        assert torch.equal(triggered(name, shown()).images, stamp(shown().images))


def test_every_recipe_has_a_trigger_and_no_published_name():
    for name in RECIPES.keys() - {"latent"}:
        assert trigger_of(name)
    assert not RECIPES.keys() & set(PUBLISHED)


def test_composites_are_of_the_classes_of_the_recipe():
    assert triggered("composite", shown()).labels.tolist() == [0, 0, 0]


def test_the_pattern_that_is_kept_is_what_the_trigger_stamps(tmp_path, monkeypatch):
    monkeypatch.setattr(suspects, "ZOO", tmp_path)
    pattern = shown().images[0, :, :3, :3]
    zoo.save("latent", Backdoored(nn.Linear(1, 1), pattern))
    assert torch.equal(triggered("latent", shown()).images[..., -3:, -3:], pattern.expand(6, 3, 3, 3))


def test_every_model_that_is_kept_is_the_one_that_the_index_tells_of():
    kept = [name for name in RECIPES if weights_of(name).exists()]
    assert {"benign", "heldout", "sig", "warp"} <= set(kept)
    for name in kept:
        suspect(name)


def test_other_weights_than_the_index_tells_of_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(suspects, "ZOO", tmp_path)
    save_file({"weight": torch.zeros(1)}, weights_of("sig"))
    (tmp_path / "zoo.json").write_text('[{"name": "sig", "sha256": "0"}]')
    with pytest.raises(ValueError, match="is not the model that its digest tells of"):
        suspect("sig")


def test_an_entry_is_kept_once_by_its_key(tmp_path):
    kept = tmp_path / "kept.json"
    for name, n in (("b", 1), ("a", 2), ("b", 3)):
        keep_among(kept, {"name": name, "n": n}, ["name"])
    assert json.loads(kept.read_text()) == [{"name": "a", "n": 2}, {"name": "b", "n": 3}]
