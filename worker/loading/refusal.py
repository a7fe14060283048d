"""How a loader says no: one error that carries every reason, in words for the person who sent the file."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.models import Problem

_SHOWN = 20
_SHOWN_CHARACTERS = 200


class RefusedError(Exception):
    """A file is not taken; ``problems`` holds every reason, each with what to do about it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.detail for problem in problems))
        self.problems = problems


def refused(code: str, detail: str, *, pointer: str | None = None) -> RefusedError:
    """A refusal for one reason."""
    return RefusedError(Problem(code=code, detail=detail, pointer=pointer))


def told(error: Exception) -> str:
    """What a library says, on one line and cut short; it may quote the file, so what cannot be shown is escaped."""
    text = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def listed(names: Sequence[str]) -> str:
    """Quote the first of ``names`` and count the rest. A name is data: cut short, control characters escaped."""
    shown = ", ".join(repr(name[:_SHOWN_CHARACTERS]) for name in names[:_SHOWN])
    hidden = len(names) - _SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown
