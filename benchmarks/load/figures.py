"""What a part returns: promises with what was measured, and the figures around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Target:
    """One promise. Exactly one of the bounds is given."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        return self.at_least is not None and self.measured >= self.at_least

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        bound = {"at_most": self.at_most} if self.at_most is not None else {"at_least": self.at_least}
        return {"what": self.what, "measured": round(self.measured, 3), **bound, "met": self.met}


@dataclass(frozen=True)
class Measured:
    """One part's promises and figures."""

    targets: Sequence[Target]
    figures: Mapping[str, Any] = field(default_factory=dict)


def p99(seconds: Sequence[float]) -> float:
    """The time, in ms, within which 99 of 100 were answered."""
    return 1000 * quantiles(seconds, n=100, method="inclusive")[-1]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """How long answers took, in ms."""
    figures = {"p50_ms": 1000 * median(seconds), "p99_ms": p99(seconds), "max_ms": 1000 * max(seconds)}
    return {"n": len(seconds), **{name: round(value, 2) for name, value in figures.items()}}
