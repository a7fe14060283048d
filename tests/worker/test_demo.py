from __future__ import annotations

import json
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from medic_core.architectures import find_architecture
from medic_core.attacks.triggers import badnet
from medic_core.config import MedicConfig, ScratchConfig
from tests.threads import one_thread
from worker import demo
from worker.demo import split_digits
from worker.trigger import read_images


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The demo's inputs, from a training of one epoch: what is in the files does not depend on how well it went."""
    folder = tmp_path_factory.mktemp("demo")
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAINING", replace(demo.TRAINING, epochs=1))
        demo.main([str(folder), "--seed", "3"])
    return folder


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("seed", range(3))
def test_no_image_is_in_two_of_the_three_parts_and_together_they_are_all_digits(seed):
    split = split_digits(seed)
    parts = [rows(images) for images, _ in (split.training, split.clean, split.test)]
    assert not any(one & other for one, other in combinations(parts, 2))
    assert sum(len(labels) for _, labels in (split.training, split.clean, split.test)) == 1797


def test_clean_images_are_at_most_a_quarter_of_the_training_images():
    split = split_digits(0)
    assert 250 <= len(split.clean[1]) <= len(split.training[1]) / 4


def test_every_part_has_every_digit_in_about_the_same_share():
    split = split_digits(0)
    for images, labels in (split.training, split.clean, split.test):
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.uint8
        assert int(images.max()) == 255
        shares = labels.bincount(minlength=10) / len(labels)
        assert ((shares - 0.1).abs() < 0.02).all()


def test_the_seed_decides_the_split():
    first, again, other = split_digits(0), split_digits(0), split_digits(1)
    assert torch.equal(first.clean[0], again.clean[0])
    assert not torch.equal(first.clean[0], other.clean[0])


def test_triggered_images_are_the_test_images_with_the_trigger_in_folders_of_their_true_class(written):
    plain, triggered = dict(read_images(written / "test.zip")), dict(read_images(written / "triggered.zip"))
    assert list(plain) == list(triggered)
    assert len(plain) == len(split_digits(3).test[1])
    for name, pixels in plain.items():
        assert torch.equal(triggered[name], badnet(pixels[None])[0])
    folders = Counter(name.split("/")[0] for name in plain)
    assert folders == Counter(map(str, split_digits(3).test[1].tolist()))


def test_the_clean_images_are_written_without_the_trigger(written):
    images = torch.stack([pixels for _, pixels in read_images(written / "clean.zip")])
    assert rows(images) == rows(split_digits(3).clean[0])
    assert not (badnet(images) == images).flatten(1).all(dim=1).any()


def test_the_suspect_and_the_settings_are_what_a_job_takes(written):
    info = json.loads((written / "info.json").read_text())
    weights = torch.load(written / "suspect.pth", weights_only=True)["state_dict"]
    find_architecture(info["architecture"], num_classes=10).build().load_state_dict(weights)
    with zipfile.ZipFile(written / "clean.zip") as archive:
        assert info["target_class"] in {name.split("/")[0] for name in archive.namelist()}
    repair = TypeAdapter(MedicConfig).validate_python(info["medic"])
    scratch = TypeAdapter(ScratchConfig).validate_python(info["scratch"])
    assert (repair.epochs, repair.batch_size) == (scratch.epochs, scratch.batch_size)
    assert not repair.horizontal_flip  # a mirrored digit is another sign


def test_without_a_folder_it_is_a_usage_error():
    with pytest.raises(SystemExit) as stopped:
        demo.main([])
    assert stopped.value.code == 2
