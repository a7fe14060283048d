"""A filter of system calls: no sockets, no programs, no reach into other processes or deeper into the kernel.

A list of what is refused, not of what is allowed: the C library and PyTorch may use new calls any day. Each refused
call fails with ``EPERM``, so that code which asks on the off chance goes on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from itertools import accumulate, chain
from types import MappingProxyType

from worker.libc import prctl

REFUSED: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        # sockets of every family; io_uring would open them past this filter
        "socket": (41, 198),
        "socketpair": (53, 199),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        # programs
        "execve": (59, 221),
        "execveat": (322, 281),
        # other processes
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "kcmp": (312, 272),
        "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438),
        "pidfd_send_signal": (424, 424),
        "tkill": (200, 130),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "setpriority": (141, 140),
        "ioprio_set": (251, 30),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
        # out of the group in which the supervisor ends a process with all that it has started
        "setpgid": (109, 154),
        "setsid": (112, 157),
        # what Landlock does not guard: owner, mode, times and attributes of files; their length before version 3
        "truncate": (76, 45),
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, None),
        "lchown": (94, None),
        "fchown": (93, 55),
        "fchownat": (260, 54),
        "utime": (132, None),
        "utimes": (235, None),
        "futimesat": (261, None),
        "utimensat": (280, 88),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "setxattrat": (463, 463),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
        "fremovexattr": (199, 16),
        "removexattrat": (466, 466),
        "file_setattr": (469, 469),
        # files by another way than their path
        "open_by_handle_at": (304, 265),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "open_tree_attr": (467, 467),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "unshare": (272, 97),
        "setns": (308, 268),
        # parts of the kernel that exploits begin with, and that no parser needs
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "personality": (135, 92),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
    }
)
"""Numbers on x86_64 and on aarch64, None where there is no such call."""

TO_ITSELF: Mapping[str, tuple[int, int]] = MappingProxyType({"kill": (62, 129), "tgkill": (234, 131)})
"""Signals, which a process may send to itself only: so it aborts."""

OF_ITSELF: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "prlimit64": (302, 261),
        "sched_setparam": (142, 118),
        "sched_setscheduler": (144, 119),
        "sched_setaffinity": (203, 122),
        "sched_setattr": (314, 274),
    }
)
"""Limits and scheduling, which a process may set of itself only, by its number or by 0: a limit can kill."""

COMMANDS: Mapping[str, tuple[tuple[int, int], tuple[int, ...]]] = MappingProxyType(
    {
        "ioctl": ((16, 29), (0x5412, 0x541C)),  # TIOCSTI, TIOCLINUX: stderr may be the terminal of who started us
        "fcntl": ((72, 25), (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX: the kernel would send the signal
    }
)
"""Calls of many purposes, with those that are refused: their second argument."""

_ARCHITECTURES = MappingProxyType({"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)})
"""By machine: its audit number, and its column in the tables of numbers."""

_FIRST_X32 = 0x40000000  # other numbers for the same calls, on x86_64

_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict() -> None:
    """Refuse the calls of ``REFUSED`` to this thread and to all that it starts, for good.

    Needs ``forbid_new_privileges`` first. Other threads that already run stay as they are.

    Raises:
        OSError: The kernel refused, or the numbers of this machine's calls are not known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter is written for {machine}")
    program = _assembled(machine, os.getpid())
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def _assembled(machine: str, process: int) -> bytes:
    """Write the filter for ``process`` as classic BPF. Of arguments the kernel, too, looks at the lower half only."""
    architecture, column = _ARCHITECTURES[machine]
    refused = [number for numbers in REFUSED.values() if (number := numbers[column]) is not None]
    blocks: dict[str, list[tuple[int, int, str, str]]] = {
        "start": [
            (_LOAD, _ARCHITECTURE_AT, "", ""),
            (_EQUALS, architecture, "", "refuse"),
            (_LOAD, _NUMBER_AT, "", ""),
            (_AT_LEAST, _FIRST_X32, "refuse", ""),
            *((_EQUALS, number, "refuse", "") for number in refused),
            *((_EQUALS, numbers[column], "to whom", "") for numbers in TO_ITSELF.values()),
            *((_EQUALS, numbers[column], "of whom", "") for numbers in OF_ITSELF.values()),
            *((_EQUALS, numbers[column], name, "") for name, (numbers, _) in COMMANDS.items()),
            _always("allow"),
        ],
        **{
            name: [
                (_LOAD, _SECOND_ARGUMENT_AT, "", ""),
                *((_EQUALS, command, "refuse", "") for command in commands),
                _always("allow"),
            ]
            for name, (_, commands) in COMMANDS.items()
        },
        "of whom": [(_LOAD, _FIRST_ARGUMENT_AT, "", ""), (_EQUALS, 0, "allow", "")],  # and on, as to whom
        "to whom": [(_LOAD, _FIRST_ARGUMENT_AT, "", ""), (_EQUALS, process, "allow", "refuse")],
        "allow": [(_RETURN, _ALLOW, "", "")],
        "refuse": [(_RETURN, _ERRNO | errno.EPERM, "", "")],
    }
    lines = list(chain.from_iterable(blocks.values()))
    places = dict(zip(blocks, accumulate(map(len, blocks.values()), initial=0), strict=False))

    def jump(place: str, here: int) -> int:
        return places[place] - here - 1 if place else 0

    return b"".join(
        struct.pack("=HBBI", code, jump(if_true, here), jump(if_false, here), value)
        for here, (code, value, if_true, if_false) in enumerate(lines)
    )


def _always(place: str) -> tuple[int, int, str, str]:
    return _AT_LEAST, 0, place, ""
