"""Sweeping goes on for as long as its process lives."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import ProgrammingError

from jobs.artifacts import open_artifacts
from jobs.claims import SweepResult
from jobs.errors import DatabaseUnavailableError
from jobs.settings import Settings
from jobs.store import open_store
from jobs.sweeper import sweep_forever

ERRORS = [
    DatabaseUnavailableError("away"),
    OSError("Input/output error"),
    ProgrammingError("SELECT", {}, Exception("unforeseen")),
]


@pytest.mark.parametrize("error", ERRORS, ids=type)
def test_a_sweep_that_fails_is_said_and_is_not_the_last(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path, sweep_seconds=0.001)
    store = open_store(settings)
    stopping = threading.Event()
    left = [error]

    def sweep() -> SweepResult:
        if left:
            raise left.pop()
        stopping.set()
        return SweepResult()

    monkeypatch.setattr(store, "sweep", sweep)
    sweep_forever(store, open_artifacts(settings), None, settings, stopping)
    assert stopping.is_set()
    assert "sweep put off" in caplog.text
    store.close()
