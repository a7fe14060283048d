"""Corruption: within the range of pixels, as often as it should, of the families that it names."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medic_core.config import Preprocessing
from medic_core.corruption import (
    Waves,
    _rectangles,
    _warp,
    add_noise,
    any_waves,
    distort,
    exchanged,
    foreign_parts,
    leading_waves,
)
from medic_core.data import normalize


def drawn(seed: int, make: Callable[[], Tensor]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def corrupted(seed: int, images: Tensor, preprocessing: Preprocessing, share: float = 1.0) -> Tensor:
    inputs, waves = normalize(images, preprocessing), any_waves(images.device)
    return drawn(seed, lambda: add_noise(distort(inputs, waves, preprocessing), share, preprocessing))


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**20))
def test_corrupted_pixels_stay_in_the_range_of_pixels_and_repeat_under_the_same_seed(
    height: int, width: int, seed: int
) -> None:
    preprocessing = Preprocessing(color_order="BGR", value_range=(0.0, 255.0), mean=(100, 110, 120), std=(50, 60, 70))
    images = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = corrupted(seed, images, preprocessing)
    low, high = (normalize(torch.full((1, 3, 1, 1), pixel), preprocessing) for pixel in (0.0, 1.0))
    assert (found >= low - 1e-4).all()
    assert (found <= high + 1e-4).all()
    assert torch.equal(found, corrupted(seed, images, preprocessing))


def test_corruption_does_something_to_nearly_all_images() -> None:
    images = torch.rand(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = (corrupted(1, images, Preprocessing()) != images).flatten(1).any(dim=1)
    expected = 1 - 0.25**3 * 0.75  # two rectangles, a wave, a warp
    assert changed.float().mean().item() == pytest.approx(expected, abs=0.01)


def test_noise_is_put_on_as_many_images_as_were_asked_for() -> None:
    images = torch.rand(3000, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy = drawn(1, lambda: add_noise(images, 0.4, Preprocessing())) != images
    assert noisy.flatten(1).any(dim=1).float().mean().item() == pytest.approx(0.4 * (1 - 0.25**2), abs=0.03)
    assert noisy.float().mean() < 0.4 * 2 * 0.75 / 16  # of each side a quarter at most


def test_rectangles_lie_within_the_image_anywhere_and_are_no_larger_than_a_quarter_of_its_sides() -> None:
    masks = drawn(0, lambda: _rectangles(torch.zeros(3000, 3, 16, 24), 1.0))[:, 0]
    heights, widths = masks.any(dim=2).sum(dim=1), masks.any(dim=1).sum(dim=1)
    assert {2, 4} <= set(heights.tolist()) <= {2, 3, 4}
    assert {2, 6} <= set(widths.tolist()) <= {2, 3, 4, 5, 6}
    assert torch.equal(masks.sum(dim=(1, 2)), heights * widths)
    assert masks.any(dim=0).all()


@given(st.integers(8, 96), st.integers(8, 96), st.integers(0, 2**20))
def test_a_warp_moves_each_pixel_a_little_and_leaves_the_images_that_are_not_chosen(
    height: int, width: int, seed: int
) -> None:
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    columns = torch.arange(width).expand(height, width)
    places = torch.stack([rows, columns, torch.zeros(height, width)]).repeat(6, 1, 1, 1)
    chosen = torch.tensor([True, False] * 3).view(-1, 1, 1, 1)
    moved = drawn(seed, lambda: _warp(places, chosen)) - places
    assert (moved[::2, 0].abs() < 1.5 * height / 32).all()  # a bicubic field goes a little beyond its points
    assert (moved[::2, 1].abs() < 1.5 * width / 32).all()
    assert (moved[::2, 2] == 0).all()
    assert (moved[1::2] == 0).all()


def test_a_warp_bends_images_smoothly_and_each_in_its_own_way() -> None:
    ramp = torch.arange(64.0).expand(200, 3, 64, 64)
    moved = drawn(0, lambda: _warp(ramp, torch.ones(200, 1, 1, 1, dtype=torch.bool))) - ramp
    assert moved.abs().amax(dim=(1, 2, 3)).median() > 0.5
    assert moved.abs().amax(dim=(1, 2, 3)).max() > 1.5
    assert moved.diff(dim=2).abs().max() < 0.3  # from 2 pixels to one side to 2 to the other over 21
    assert len(moved.flatten(1).unique(dim=0)) == 200


def test_waves_go_every_way_at_any_pace_smooth_or_with_edges_half_of_them_along_an_axis() -> None:
    waves = drawn(0, lambda: any_waves(torch.device("cpu")).draw(torch.zeros(4000, 3, 32, 32)))[:, 0]
    amplitude = waves.abs().amax(dim=(1, 2))
    assert 0.15 < amplitude.max() <= 0.2
    levels = torch.tensor([len(wave.unique()) for wave in waves])
    assert (levels <= 3).float().mean() == pytest.approx(0.5, abs=0.03)  # two values, and 0 where a sine is
    along = (waves.diff(dim=1).abs().amax(dim=(1, 2)) < 1e-6) | (waves.diff(dim=2).abs().amax(dim=(1, 2)) < 1e-6)
    assert along.float().mean() == pytest.approx(0.5, abs=0.06)  # slow ones with edges may show none on the other axis
    power = torch.fft.rfft2(waves[levels > 3]).abs()
    peak = power.flatten(1).argmax(dim=1)
    down, across = (torch.fft.fftfreq(32)[peak // 17] * 32).abs(), torch.fft.rfftfreq(32)[peak % 17] * 32
    turns = torch.hypot(down, across)
    for low, high in ((1, 2), (2, 4), (4, 8), (8, 17)):  # an octave is as likely as another
        assert ((turns >= low - 0.5) & (turns < high - 0.5)).float().mean() == pytest.approx(0.25, abs=0.1)
    assert (down > 2 * across).float().mean() > 0.15
    assert (across > 2 * down).float().mean() > 0.15


def test_waves_are_drawn_from_each_cell_as_often_as_its_odds_say() -> None:
    everything = any_waves(torch.device("cpu"))
    smooth = Waves(everything.cells, everything.odds * (everything.cells[:, 3] == 0))
    assert all(len(wave.unique()) > 3 for wave in drawn(1, lambda: smooth.draw(torch.zeros(200, 3, 32, 32))))
    only = Waves(everything.cells, torch.eye(len(everything.cells))[7])
    like = torch.zeros(50, 3, 16, 24)
    cells = torch.full((50,), 7)

    def scaled() -> Tensor:
        amplitude = torch.rand(2, 50)[1].view(-1, 1, 1, 1)
        return 0.2 * amplitude * only.within(cells, like)

    assert torch.equal(drawn(2, lambda: only.draw(like)), drawn(2, scaled))


class Listener(nn.Module):
    """Calls an image class 1 of three the surer the more of one sine is in it, and never anything of its brightness."""

    def __init__(self, periods: int, side: int) -> None:
        super().__init__()
        turns = torch.arange(side) * periods * 2 * math.pi / side
        self.register_buffer("heard", torch.stack([turns.sin(), turns.cos()]) * 2 / side)

    def forward(self, images: Tensor) -> Tensor:
        strength = (images.mean(dim=(1, 2)) @ self.heard.T).norm(dim=1)
        return torch.stack([torch.zeros_like(strength), 80 * strength - 4, torch.zeros_like(strength)], dim=1)


@pytest.mark.parametrize("periods", [3, 6, 11])
def test_waves_that_lead_to_a_class_are_drawn_far_more_often_and_no_wave_never(periods: int) -> None:
    images = 0.3 + 0.4 * torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = Listener(periods, 32)
    waves = drawn(3, lambda: leading_waves(model, images, Preprocessing()))
    before = any_waves(images.device)
    assert torch.equal(waves.cells, before.cells)
    assert (waves.odds > 0).all()
    share = waves.odds / waves.odds.sum()
    pace, direction, spread = waves.cells.T[:3]
    first, last = 32 * 0.5 * (1 / 16) ** pace, 32 * 0.5 * (1 / 16) ** (pace + 1 / 12)
    heard = (last <= periods) & (periods <= first) & (direction == 0) & (spread == 0)
    assert heard.sum() == 2  # a sine and its sign
    assert share[heard].sum() > 10 * before.odds[heard].sum() / before.odds.sum()
    assert torch.equal(waves.odds, drawn(3, lambda: leading_waves(model, images, Preprocessing())).odds)


def test_a_suspect_that_no_wave_moves_gets_them_evenly() -> None:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    nn.init.zeros_(model[1].weight)
    waves = drawn(4, lambda: leading_waves(model, images, Preprocessing()))
    torch.testing.assert_close(waves.odds / waves.odds.sum(), any_waves(images.device).odds / 4)


@given(st.integers(8, 48), st.integers(8, 48), st.integers(0, 2**20))
def test_foreign_parts_are_bands_from_an_edge_or_boxes_of_a_quarter_to_three_quarters(
    height: int, width: int, seed: int
) -> None:
    parts = drawn(seed, lambda: foreign_parts(torch.zeros(40, 3, height, width)))[:, 0]
    heights, widths = parts.any(dim=2).sum(dim=1), parts.any(dim=1).sum(dim=1)
    assert torch.equal(parts.sum(dim=(1, 2)), heights * widths)  # one rectangle each
    for sides, length in ((heights, height), (widths, width)):
        some = sides[sides < length]
        assert (some >= 0.25 * length - 1).all()
        assert (some <= 0.75 * length + 1).all()
    across, down = widths == width, heights == height
    assert not (across & down).any()
    assert (parts[across, 0].all(dim=1) | parts[across, -1].all(dim=1)).all()
    assert (parts[down, :, 0].all(dim=1) | parts[down, :, -1].all(dim=1)).all()


def test_foreign_parts_are_of_all_three_kinds() -> None:
    parts = drawn(0, lambda: foreign_parts(torch.zeros(4000, 3, 16, 16)))[:, 0]
    across, down = parts.any(dim=1).all(dim=1), parts.any(dim=2).all(dim=1)
    for kind in (across, down, ~across & ~down):
        assert kind.float().mean() == pytest.approx(1 / 3, abs=0.05)


@given(st.integers(0, 25))
def test_to_exchange_neighbours_twice_changes_nothing_and_once_moves_all(pairs: int) -> None:
    numbers = torch.arange(2 * pairs)
    assert torch.equal(exchanged(exchanged(numbers)), numbers)
    assert ((exchanged(numbers) - numbers).abs() == 1).all()
