"""A service on its embedded default, shared where nothing is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.stack import POLLING, Stack, stack
from benchmarks.tiny import make_inputs
from medic_client.client import MedicClient
from tests.threads import one_thread


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job's files."""
    folder = tmp_path_factory.mktemp("inputs")
    with one_thread():
        make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Iterator[Stack]:
    """An API and a polling worker."""
    with stack(tmp_path_factory.mktemp("service"), inputs) as made:
        made.start(*POLLING)
        yield made


@pytest.fixture(scope="module")
def client(running: Stack) -> Iterator[MedicClient]:
    """A client of ``running``."""
    with running.api() as made:
        yield made
