"""``python -m medic_client.tied PARENT PROGRAM ARGUMENTS…``: become a program that dies with its parent.

Also when the parent is killed by ``kill -9``. That is Linux's; elsewhere the program just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the parent-death signal, which outlives ``exec``, and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # otherwise it died before the signal was set
        os.execv(program[0], program)  # noqa: S606 - the caller's own program, no shell


if __name__ == "__main__":
    main()
