"""Tell a lack of memory or disk from other errors: the libraries have no classes for it."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.artifacts import NO_ROOM
from worker.children import NO_ROOM_STATUS

_NO_MEMORY_TEXTS = ("allocate memory", f"os error {errno.ENOMEM})")
_NO_GPU_MEMORY_TEXTS = (
    *("CUDA out of memory", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_INITIALIZED"),
)
_TOO_LARGE_TEXTS = (f"os error {errno.EFBIG})", "File too large")
_TORCH_CANNOT_WRITE = ("iostream error", "unexpected pos", "PytorchStreamWriter failed")  # it does not say why
_NO_ROOM_TEXTS = (
    *(f"os error {number})" for number in NO_ROOM),
    *("No space left", "File too large", "quota exceeded"),
    *_TORCH_CANNOT_WRITE,
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the process could not get the memory it asked for."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY_TEXTS)


def is_out_of_gpu_memory(error: Exception) -> bool:
    """Whether the GPU had no memory left: for tensors, or for what its libraries need at their first use."""
    return any(text in str(error) for text in _NO_GPU_MEMORY_TEXTS)


def is_too_large(error: Exception) -> bool:
    """Whether the process writes more to one file than it may."""
    return any(text in str(error) for text in _TOO_LARGE_TEXTS)


def is_out_of_room(error: Exception) -> bool:
    """Whether the disk is full, or the process may not write as much."""
    return any(text in str(error) for text in _NO_ROOM_TEXTS)


@contextmanager
def memory_at_most(more_bytes: int) -> Iterator[None]:
    """Let the body take no more than so many bytes beyond what the process has (on Linux; elsewhere nothing).

    Past that, allocations fail as they do when there is no memory left; see `is_out_of_memory`.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    has = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    allowed = min((limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), default=has + more_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed, has + more_bytes), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def exit_without_room() -> Iterator[None]:
    """End the process with a status that says so when the body fails for want of room on the disk."""
    try:
        yield
    except Exception as error:
        if not is_out_of_room(error):
            raise
        sys.exit(NO_ROOM_STATUS)
