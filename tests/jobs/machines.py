"""How long the state machines run, and how a test asks for what may be refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from jobs.errors import JobsError

FULL = os.environ.get("MEDIC_TEST_FULL") == "1"

patient = pytest.mark.timeout(6 * 3600 if FULL else 1200)

Answer = TypeVar("Answer")


def run_machine(machine: Callable[[], RuleBasedStateMachine]) -> None:
    """Try 200 sequences of at most 30 events; with ``MEDIC_TEST_FULL=1`` 2,000 of at most 50."""
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=2000 if FULL else 200,
            stateful_step_count=50 if FULL else 30,
            deadline=None,
            derandomize=True,  # so that what was seen is no matter of luck
            suppress_health_check=list(HealthCheck),
        ),
    )


def asked(call: Callable[..., Answer], *arguments: object) -> Answer | type[JobsError]:
    """Return what is answered, or the class of the refusal."""
    try:
        return call(*arguments)
    except JobsError as error:
        return type(error)
