"""What every child process of the supervisor does first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_PID = "MEDIC_PARENT_PID"
"""Environment variable in which the supervisor tells a child its process id."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process as soon as the thread that started it is gone (on Linux; elsewhere nothing).

    Raises:
        OSError: The kernel refused.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    parent = os.environ.get(PARENT_PID)
    if parent is not None and os.getppid() != int(parent):  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
