"""``auto`` keeps the largest temperature that the budget allows, and judges only by images that did not train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medic_core.config import AutoConfig, CloningConfig, MedicConfig
from medic_core.data import Batches
from medic_core.errors import DataTooSmallError
from medic_core.evaluation import Share
from medic_core.removal import Progress, Suspect, remove_backdoor
from medic_core.removal.auto import clone_at_best_temperature, split_holdout
from medic_core.removal.bisection import Judgement, Trial, best, judge_accuracy, next_temperature
from medic_core.removal.training import State

SHORT = AutoConfig(epochs=1, batch_size=8, runs=2, accuracy_budget=1.0)  # a clone of one epoch keeps no smaller budget


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(tensor, twin) for (name, tensor), (other, twin) in pairs)


def cloned_at(temperature: float, suspect: Suspect, clean: Batches, config: AutoConfig) -> nn.Module:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(CloningConfig)}
    return remove_backdoor(suspect, clean, MedicConfig(temperature=temperature, **shared))


# --- the search, without training ------------------------------------------------------------------------------------


def trial(temperature: float, lost: int, n: int, config: AutoConfig, *more: Judgement) -> Trial:
    before, after = Share(n, n), Share(n - lost, n)
    judgement = judge_accuracy(before, after, budget=config.accuracy_budget)
    return Trial(temperature, before, after, (judgement, *more))


def searched(config: AutoConfig, n: int, lost: Callable[[float], int]) -> list[Trial]:
    trials: list[Trial] = []
    for _ in range(config.runs):
        temperature = next_temperature(trials, config)
        trials.append(trial(temperature, lost(temperature), n, config))
    return trials


@given(
    ends=st.lists(st.floats(1e-3, 1000), min_size=2, max_size=2, unique=True).map(sorted),
    runs=st.integers(1, 8),
    budget=st.floats(0, 1),
    n=st.integers(1, 2000),
    scale=st.floats(1e-3, 1000),
    power=st.floats(0, 4),
)
def test_bisection_closes_in_on_the_largest_temperature_inside_the_budget(
    ends: list[float], runs: int, budget: float, n: int, scale: float, power: float
) -> None:
    low, high = ends
    config = AutoConfig(lowest_temperature=low, highest_temperature=high, runs=runs, accuracy_budget=budget)
    trials = searched(config, n, lambda temperature: min(n, int(n * (temperature / scale) ** power)))
    kept, accepted = best(trials), [each for each in trials if each.accepted]
    assert all(low <= each.temperature <= high for each in trials)
    assert all((each.drop <= budget) == each.accepted for each in trials)
    assert kept.accepted == bool(accepted)
    largest = max((each.temperature for each in accepted), default=low)
    if accepted:
        assert kept.temperature == largest
    else:
        assert kept.drop == min(each.drop for each in trials)
    refused = min((each.temperature for each in trials if not each.accepted), default=high)
    assert largest <= refused
    assert refused / largest <= (high / low) ** (1 / 2**runs) * (1 + 1e-9)  # halved by every run


@given(st.integers(1, 5000), st.data())
def test_a_drop_of_exactly_the_budget_is_inside_it(n: int, data: st.DataObject) -> None:
    allowed, lost = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    assert judge_accuracy(Share(n, n), Share(n - lost, n), budget=allowed / n).accepted == (lost <= allowed)


def test_three_points_are_15_of_500_images() -> None:
    budget = AutoConfig().accuracy_budget
    assert judge_accuracy(Share(450, 500), Share(435, 500), budget=budget).accepted
    refused = judge_accuracy(Share(450, 500), Share(434, 500), budget=budget)
    assert not refused.accepted
    assert refused.detail == (
        "434 of 500 held-out images are called right, 450 before: a drop of 3.2 points, where 3 are allowed"
    )


def test_what_another_judge_misses_is_not_kept_but_the_search_follows_accuracy() -> None:
    config, missing = AutoConfig(), Judgement("evidence", accepted=False, detail="a trigger was found")
    trials = [trial(2.0, 0, 100, config), trial(4.0, 0, 100, config, missing), trial(8.0, 50, 100, config)]
    assert best(trials).temperature == 2.0
    assert next_temperature(trials, config) == pytest.approx(math.sqrt(4 * 8))


def test_of_clones_that_all_lost_the_same_the_largest_temperature_is_kept() -> None:
    config = AutoConfig()
    assert best([trial(temperature, 9, 100, config) for temperature in (2.0, 4.0, 1.0)]).temperature == 4.0


# --- with training ---------------------------------------------------------------------------------------------------


def held_out(clean: Batches) -> Tensor:
    """Which images are held out, told by marking every one."""
    number = torch.arange(len(clean), dtype=torch.uint8).view(-1, 1, 1, 1)
    marked = dataclasses.replace(clean, images=number.expand_as(clean.images))
    return split_holdout(marked, SHORT)[1].images[:, 0, 0, 0].long()


def test_the_clone_is_that_of_medic_at_the_chosen_temperature_on_what_is_left(suspect: Suspect, clean: Batches) -> None:
    seen: list[Progress] = []
    found = remove_backdoor(suspect, clean, SHORT, progress=seen.append)
    trials = seen[-1].trials
    assert [each.temperature for each in trials] == pytest.approx([1.0, math.sqrt(8)])
    assert [each.accepted for each in trials] == [True, True]
    assert {each.after.n for each in trials} == {6}  # a fifth of each class of eleven
    assert same(found, cloned_at(trials[1].temperature, suspect, split_holdout(clean, SHORT)[0], SHORT))
    assert [(row["run"], row["temperature"], row["epoch"]) for row in seen[-1].history] == [
        (1, trials[0].temperature, 1),
        (2, trials[1].temperature, 1),
    ]


def test_held_out_images_are_a_fifth_of_each_class_and_never_train(suspect: Suspect, clean: Batches) -> None:
    held = held_out(clean)
    assert clean.labels[held].bincount().tolist() == [2, 2, 2]
    images = clean.images.clone()
    images[held] = 255 - images[held]
    other = dataclasses.replace(clean, images=images)
    assert same(remove_backdoor(suspect, clean, SHORT), remove_backdoor(suspect, other, SHORT))


def test_without_an_accepted_clone_the_one_that_lost_least_is_returned(suspect: Suspect, clean: Batches) -> None:
    seen: list[Progress] = []
    refuse = Judgement("never", accepted=False, detail="nothing is good enough")
    found = clone_at_best_temperature(suspect, clean, SHORT, judges=[lambda _: refuse], progress=seen.append)
    trials = seen[-1].trials
    assert [each.accepted for each in trials] == [False, False]
    assert all(each.judgements[1] == refuse for each in trials)
    kept = min(trials, key=lambda each: (each.drop, -each.temperature))
    assert same(found, cloned_at(kept.temperature, suspect, split_holdout(clean, SHORT)[0], SHORT))


class Killed(Exception):  # noqa: N818 - it stands for a kill, not an error
    """The process ends here."""


class KilledInTheSecondRun:
    """A checkpoint that ends the process after the second run's first epoch."""

    def __init__(self) -> None:
        self.state: State | None = None

    def load(self) -> State | None:
        return self.state

    def save(self, state: State, *, epoch: int) -> None:
        self.state = state
        if epoch == 3:
            raise Killed


def test_the_clone_of_a_run_before_a_kill_can_still_be_the_one_that_is_kept(suspect: Suspect, clean: Batches) -> None:
    config = dataclasses.replace(SHORT, epochs=2)
    checkpoint, asked = KilledInTheSecondRun(), 0

    def only_the_first(_: nn.Module) -> Judgement:
        nonlocal asked
        asked += 1
        return Judgement("first", accepted=asked == 1, detail="")

    with pytest.raises(Killed):
        clone_at_best_temperature(suspect, clean, config, judges=[only_the_first], checkpoint=checkpoint)
    found = clone_at_best_temperature(suspect, clean, config, judges=[only_the_first], checkpoint=checkpoint)
    assert asked == 2
    first = next_temperature([], config)
    assert same(found, cloned_at(first, suspect, split_holdout(clean, config)[0], config))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0]], ids=["nothing to hold out", "too few to train"])
def test_too_few_images_to_hold_any_out_are_refused(labels: list[int], suspect: Suspect, clean: Batches) -> None:
    few = dataclasses.replace(clean, images=clean.images[: len(labels)], labels=torch.tensor(labels))
    with pytest.raises(DataTooSmallError, match="holds out a fifth"):
        remove_backdoor(suspect, few, SHORT)
