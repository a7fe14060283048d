"""The search of ``auto`` without its training: what a trial says, which temperature comes next, which is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from medic_core.config import AutoConfig
from medic_core.evaluation import Share


@dataclass(frozen=True)
class Judgement:
    """What one judge says of one clone.

    Attributes:
        name: Of the judge.
        accepted: Whether the clone may be kept.
        detail: The figures behind it, as a clause without a full stop.
    """

    name: str
    accepted: bool
    detail: str


Judge = Callable[[nn.Module], Judgement]
"""Looks at a clone in eval mode, on the device of the clean data; never at test data or a trigger."""


@dataclass(frozen=True)
class Trial:
    """One temperature with what came of it.

    Attributes:
        temperature: τ of the run.
        before: Held-out images that the suspect calls right.
        after: Those that the clone calls right.
        judgements: One of each judge, accuracy first.
    """

    temperature: float
    before: Share
    after: Share
    judgements: tuple[Judgement, ...]

    @property
    def drop(self) -> float:
        """What accuracy fell by, as a share of 1; negative where it rose."""
        return accuracy_drop(self.before, self.after)

    @property
    def accepted(self) -> bool:
        """Whether no judge objects."""
        return all(judgement.accepted for judgement in self.judgements)


def accuracy_drop(before: Share, after: Share) -> float:
    """What accuracy fell by, as a share of 1; negative where it rose."""
    return (before.count - after.count) / before.n  # one rounding, so that exactly the budget is not above it


def judge_accuracy(before: Share, after: Share, *, budget: float) -> Judgement:
    """Accept a clone whose accuracy on the held-out images fell by no more than ``budget``, a share of 1."""
    drop = accuracy_drop(before, after)
    detail = (
        f"{after.count} of {after.n} held-out images are called right, {before.count} before:"
        f" a drop of {100 * drop:.1f} points, where {100 * budget:.3g} are allowed"
    )
    return Judgement("accuracy", drop <= budget, detail)


def next_temperature(trials: Sequence[Trial], config: AutoConfig) -> float:
    """Return the geometric middle of the temperatures between which the budget must come to its end.

    The drop grows with τ, so accuracy alone says where to go on. What another judge misses in a clone may be found
    above or below; it decides only what is kept.
    """
    low, high = config.lowest_temperature, config.highest_temperature
    for trial in trials:
        if trial.drop <= config.accuracy_budget:
            low = trial.temperature
        else:
            high = trial.temperature
    return min(high, math.sqrt(low) * math.sqrt(high))  # rounding must not leave the interval


def best(trials: Sequence[Trial]) -> Trial:
    """Return the accepted trial of the largest temperature; where there is none, the one that lost least accuracy."""
    accepted = [trial for trial in trials if trial.accepted]
    if accepted:
        return max(accepted, key=lambda trial: trial.temperature)
    return min(trials, key=lambda trial: (trial.drop, -trial.temperature))
