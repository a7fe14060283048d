"""Landlock: this process and all that it starts keep to some files, for good. By system calls, without privileges.

The numbers are those of ``linux/landlock.h``; the system calls have the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from functools import reduce
from operator import or_
from pathlib import Path

from worker.libc import syscall

TCP_SINCE = 4
SCOPES_SINCE = 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_BIND_TCP_AND_CONNECT_TCP = 0b11
_ABSTRACT_UNIX_SOCKETS_AND_SIGNALS = 0b11


class Access(IntFlag):
    """What can be done with files. Linking and renaming across folders (``REFER``) is denied where nobody grants it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
WRITE = Access.WRITE_FILE | Access.TRUNCATE | Access.MAKE_REG | Access.REMOVE_FILE | Access.MAKE_DIR | Access.REMOVE_DIR
"""Make, fill, rename and remove folders and regular files. No links: who reads them later is not led elsewhere."""

_OF_A_FILE = Access.EXECUTE | Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Say which version of Landlock the kernel has.

    Raises:
        OSError: It has none, or it is switched off.
    """
    try:
        return syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise OSError(errno.ENOSYS, "the kernel has no Landlock (since 5.13)") from error
        if error.errno == errno.EOPNOTSUPP:
            raise OSError(errno.EOPNOTSUPP, "Landlock is not among the kernel's lsm= at boot") from error
        raise


def restrict(grants: Iterable[tuple[Path, Access]]) -> int:
    """Deny this thread, and all that it starts, every access to files but ``grants``; and all else that Landlock can.

    That is TCP, and signals and abstract sockets to processes outside, as far as this version knows them. Needs
    ``forbid_new_privileges`` first. Other threads that already run stay as they are.

    Args:
        grants: Files, or folders with all that is in them; those that cannot be opened are left out.

    Returns:
        The version of Landlock.

    Raises:
        OSError: The kernel refused; nothing is restricted.
    """
    version = abi()
    handled = _known(version)
    attr = _RulesetAttr(
        fs=handled,
        net=_BIND_TCP_AND_CONNECT_TCP if version >= TCP_SINCE else 0,
        scoped=_ABSTRACT_UNIX_SOCKETS_AND_SIGNALS if version >= SCOPES_SINCE else 0,
    )
    ruleset = syscall(_CREATE_RULESET, ctypes.byref(attr), ctypes.sizeof(attr), 0)
    try:
        for path, access in grants:
            _grant(ruleset, path, access & handled)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _known(version: int) -> Access:
    """Return what can be denied: to deny what a version does not know is an error."""
    since = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
    return reduce(or_, (access for access in Access if version >= since.get(access, 1)))


def _grant(ruleset: int, path: Path, access: Access) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        folder = stat.S_ISDIR(os.fstat(opened).st_mode)
        rule = _PathBeneathAttr(access=access if folder else access & _OF_A_FILE, parent=opened)
        syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(opened)
