"""What a kind of hostile files is, and the corpus that is drawn from kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from types import ModuleType
from typing import Literal

from benchmarks.hostile.honest import Honest
from jobs.models import Purpose

Make = Callable[[Random, Honest], bytes]
What = Literal["model", "data"]

TAKEN = "taken"
"""Stands for a code where the file is harmless and has to be read."""

DATA_ROLES: tuple[Purpose, ...] = ("clean", "test", "triggered")


@dataclass(frozen=True)
class Kind:
    """One way to mean harm.

    Attributes:
        make: Makes one file; the same state of the generator makes the same bytes (but PyTorch's legacy format holds
            addresses of memory).
        codes: The refusals that are right, ``TAKEN`` among them where it may be taken.
        roles: As what it is sent, in turn.
        files: How many of the kind belong to the corpus.
    """

    make: Make
    codes: frozenset[str]
    roles: tuple[Purpose, ...]
    files: int

    @property
    def name(self) -> str:
        """The function's name in words."""
        return self.make.__name__.replace("_", " ")


@dataclass(frozen=True)
class Hostile:
    """One file of the corpus, still to be made."""

    kind: Kind
    number: int
    seed: int

    @property
    def role(self) -> Purpose:
        """As what it is sent."""
        return self.kind.roles[self.number % len(self.kind.roles)]

    def data(self, honest: Honest) -> bytes:
        """Its bytes."""
        return self.kind.make(Random(f"{self.seed}/{self.kind.name}/{self.number}"), honest)  # noqa: S311  repeatable


def kind(what: What, *codes: str, files: int, roles: Sequence[Purpose] = DATA_ROLES) -> Callable[[Make], Kind]:
    """Make a kind of a function: ``files`` of it belong to the corpus, each is refused with one of ``codes``."""
    return lambda make: Kind(make, frozenset(codes), ("model",) if what == "model" else tuple(roles), files)


def kinds_of(*modules: ModuleType) -> tuple[Kind, ...]:
    """All kinds that these modules define, in their order."""
    return tuple(each for module in modules for each in vars(module).values() if isinstance(each, Kind))


def corpus(kinds: Sequence[Kind], *, seed: int, most: int | None = None) -> Iterator[Hostile]:
    """All files of these kinds, at most so many of each."""
    for each in kinds:
        yield from (Hostile(each, number, seed) for number in range(min(each.files, most or each.files)))
