"""A lack of room is known by every way in which the libraries say it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker.children import NO_ROOM_STATUS
from worker.exhaustion import exit_without_room

FULL = Path("/dev/full")  # for what opens a file and writes into it; safetensors would put another in its place
WRITES: dict[str, Callable[[], object]] = {
    "a short file": lambda: FULL.write_text("x"),
    "a small checkpoint": lambda: torch.save({"a": torch.zeros(10)}, FULL),
    "a large checkpoint": lambda: torch.save({"a": torch.zeros(10**6)}, FULL),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_process_that_finds_no_room_says_so_by_its_status(write: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as ended, exit_without_room():
        write()
    assert ended.value.code == NO_ROOM_STATUS


def test_another_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="odd"), exit_without_room():
        raise RuntimeError("odd")
