from __future__ import annotations

import math

import pytest
import torch

from medic_core.attacks.poisoning import poison
from medic_core.attacks.triggers import TRIGGERS, badnet, sig


def gray(n: int = 4) -> torch.Tensor:
    return torch.full((n, 3, 8, 9), 100, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("row_from_bottom", "column_from_right", "value"),
    [(1, 1, 255), (1, 2, 0), (1, 3, 255), (2, 1, 0), (2, 2, 255), (2, 3, 0), (3, 1, 255), (3, 2, 0), (3, 3, 0)],
)
def test_badnet_sets_each_pixel_of_the_authors_pattern(row_from_bottom, column_from_right, value):
    stamped = badnet(gray())
    assert (stamped[:, :, -row_from_bottom, -column_from_right] == value).all()


def test_badnet_changes_nine_pixels_a_channel_and_nothing_else():
    images = gray()
    changed = badnet(images) != images
    assert changed.sum().item() == 4 * 3 * 9
    assert not changed[:, :, :-3].any()
    assert not changed[..., :-3].any()


def test_sig_is_a_sine_along_the_columns():
    stamped = sig(torch.full((2, 3, 8, 36), 100, dtype=torch.uint8)).int()
    expected = [round(100 + 30 * math.sin(2 * math.pi * 6 * column / 36)) for column in range(36)]
    assert stamped.flatten(0, 2).tolist() == [expected] * (2 * 3 * 8)


@pytest.mark.parametrize("kind", TRIGGERS)
def test_a_trigger_leaves_its_input_alone_keeps_type_and_shape_and_shows(kind):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    stamped = TRIGGERS[kind](images)
    assert torch.equal(images, before)
    assert stamped.dtype == torch.uint8
    assert stamped.shape == images.shape
    assert not torch.equal(stamped, images)


def numbered(n: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8), torch.arange(n) % 10


def test_poisons_exactly_the_share_with_trigger_and_target_and_leaves_the_rest():
    images, labels = numbered()
    poisoned_images, poisoned_labels = poison(images, labels, trigger=badnet, target=7, share=0.2, seed=0)
    changed = (poisoned_images != images).flatten(1).any(dim=1)
    assert changed.sum().item() == 20
    assert torch.equal(poisoned_images[changed], badnet(images[changed]))
    assert (poisoned_labels[changed] == 7).all()
    assert torch.equal(poisoned_labels[~changed], labels[~changed])


def test_poisoning_leaves_its_input_and_the_global_random_state_alone():
    images, labels = numbered()
    before, state = (images.clone(), labels.clone()), torch.get_rng_state()
    poison(images, labels, trigger=badnet, target=7, share=0.2, seed=0)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_which_images_are_poisoned():
    first, again, other = (poison(*numbered(), trigger=badnet, target=7, share=0.2, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
