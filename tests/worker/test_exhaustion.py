"""A lack of room is known by every way in which the libraries say it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker.children import NO_ROOM_STATUS
from worker.exhaustion import exit_without_room, is_out_of_gpu_memory, is_out_of_memory

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: out of memory", (True, False)),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", (True, False)),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", (True, False)),
        ("DefaultCPUAllocator: can't allocate memory", (False, True)),
        ("CUDA error: device-side assert triggered", (False, False)),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors_and_the_gpu_s_from_the_host_s(
    text: str, expected: tuple[bool, bool]
) -> None:
    error = RuntimeError(text)
    assert (is_out_of_gpu_memory(error), is_out_of_memory(error)) == expected
