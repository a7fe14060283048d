"""A service on its embedded default, shared where nothing is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.stack import POLLING, Stack, stack
from benchmarks.tiny import make_inputs
from medic_client.client import MedicClient


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job's files."""
    folder = tmp_path_factory.mktemp("inputs")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two busy pools of threads on two cores slow each other down
    make_inputs(folder)
    torch.set_num_threads(before)
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
