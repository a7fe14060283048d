"""System calls that Python has no functions for."""

from __future__ import annotations

import ctypes
import os

_PR_SET_NO_NEW_PRIVS = 38


def forbid_new_privileges() -> None:
    """Give up set-uid programs for good; without that, only root may restrict itself.

    Raises:
        OSError: The kernel refused.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def prctl(option: int, *arguments: object) -> None:
    """Change this process.

    Raises:
        OSError: The kernel refused.
    """
    padded = (*map(_word, arguments), *(ctypes.c_ulong(0),) * (4 - len(arguments)))
    _checked("prctl", ctypes.c_int(option), *padded)


def syscall(number: int, *arguments: object) -> int:
    """Call the kernel by number.

    Raises:
        OSError: It refused.
    """
    return _checked("syscall", ctypes.c_long(number), *map(_word, arguments))


def _word(argument: object) -> object:
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument


def _checked(function: str, *arguments: object) -> int:
    call = getattr(ctypes.CDLL(None, use_errno=True), function)
    call.restype = ctypes.c_long
    result: int = call(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
