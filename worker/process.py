"""What processes of the worker do about their parents and about signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import MappingProxyType

from worker.libc import prctl

PARENT_PID = "MEDIC_PARENT_PID"
"""Environment variable in which the supervisor tells a child its process id."""

CHILD_ENVIRONMENT = MappingProxyType(
    {
        # threads that wait by spinning slow each other down on shared cores, but to sleep through the gaps between two
        # operations costs a third of a training step: so they look a thousand times, some 20 µs, and then sleep
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        # else glibc gives the memory of tensors back after every step, and the next waits for the kernel to clear it
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "MALLOC_MMAP_THRESHOLD_": str(2**25),  # its upper limit; larger tensors would leave holes behind
    }
)
"""What a child starts with, unless the worker's own environment says otherwise."""

_PR_SET_PDEATHSIG = 1


def set_on_signal(event: threading.Event, *numbers: signal.Signals) -> None:
    """Set ``event`` when one of the signals comes.

    From a thread: a handler that set it itself would wait for ever where the main thread is just looking at it. From a
    daemon: the start of any other takes a lock of the interpreter that the main thread may hold, as when it ends.
    """
    for number in numbers:
        signal.signal(number, lambda *_: threading.Thread(target=event.set, daemon=True).start())


def die_with_parent() -> None:
    """Have the kernel end this process as soon as the thread that started it is gone (on Linux; elsewhere nothing).

    Raises:
        OSError: The kernel refused.
    """
    if sys.platform != "linux":
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get(PARENT_PID)
    if parent is not None and os.getppid() != int(parent):  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
