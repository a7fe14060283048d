"""What the supervisor hears of the trainer."""

from __future__ import annotations

import time

import pytest

from medic_core.removal import Progress
from worker import trainer
from worker.children import Events
from worker.task import Advanced, Event
from worker.trainer import ProgressRelay


class Heard(Events):
    """Stands for the pipe to the supervisor."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def steps_of(events: list[Event]) -> list[tuple[str, int | None]]:
    return [
        (event.phase, event.progress.step if event.progress else None)
        for event in events
        if isinstance(event, Advanced)
    ]


def test_a_new_phase_and_the_end_are_told_at_once_and_life_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0.2)
    heard = Heard()
    relay = ProgressRelay(heard)
    relay.alive()  # there is no phase yet
    relay("clone", None)
    relay("clone", Progress(1, 3, ()))
    relay.alive()
    assert steps_of(heard.events) == [("clone", None)]
    time.sleep(0.25)
    relay.alive()  # tells the last that is known
    relay("clone", Progress(2, 3, ()))
    relay("clone", Progress(3, 3, ()))
    relay.alive()
    relay("evaluate", None)
    assert steps_of(heard.events) == [("clone", None), ("clone", 1), ("clone", 3), ("evaluate", None)]
