"""Give up, before untrusted bytes are read, what reading them does not need; and try whether it is gone.

What the kernel says is not believed: everything that is to be denied is tried, before and after.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import jobs
import medic_core
import worker
from jobs.models import Denial, SandboxLayer
from worker.libc import forbid_new_privileges
from worker.sandbox import landlock, seccomp
from worker.sandbox.landlock import READ, WRITE
from worker.sandbox.limits import limit_resources
from worker.task import IntakeLimits

_SYSTEM = (
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache"),
    *("/etc/localtime", "/usr/share/zoneinfo", "/etc/ssl/openssl.cnf"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/urandom"),
)
"""What libraries read: each other, the machine's cores, randomness."""

_REFUSALS = frozenset({errno.EPERM, errno.EACCES, errno.ENOMEM})


@dataclass(frozen=True)
class Part:
    """What one part of the kernel says that it denies from now on; ``lacking`` says why it does not deny more."""

    name: str
    denies: frozenset[Denial] = frozenset()
    lacking: str = ""


def confine(
    limits: IntakeLimits, *, readable: Sequence[Path], writable: Path, outside: Path
) -> tuple[SandboxLayer, ...]:
    """Restrict this process and all that it will start, for good, as far as the kernel can.

    Call it while there is one thread: the kernel restricts the one that asks, and those that it starts later.

    Args:
        limits: On memory, CPU time and files.
        readable: Files that may be read, beside those of Python, its packages and the system's libraries.
        writable: The one folder in which files may be made.
        outside: A file that this process may read and write, and soon may not any more. It is left as it is.

    Returns:
        What was tried: one layer for each thing that is to be denied.
    """
    tempfile.tempdir = str(writable)  # PyTorch makes a temporary file while it is imported
    attempts = _attempts(limits, outside)
    before = {name: _outcome(attempt) for name, attempt in attempts.items()}
    limit_resources(limits)
    parts = (Part("rlimit", frozenset({"resources"})), *_restrict(readable, writable))
    return tuple(_layer(name, before[name], _outcome(attempt), parts) for name, attempt in attempts.items())


def lacking(layers: Sequence[SandboxLayer]) -> str:
    """Name the layers that are not active, and why; an empty string where all are."""
    return "; ".join(f"{layer.name} {layer.state} ({layer.detail})" for layer in layers if layer.state != "active")


# --- restricting -----------------------------------------------------------------------------------------------------


def _restrict(readable: Sequence[Path], writable: Path) -> Iterator[Part]:
    if sys.platform != "linux":
        yield Part("kernel", lacking="only Linux has Landlock and seccomp")
        return
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        yield Part("kernel", lacking="other threads run already, and would stay as they are")
        return
    try:
        forbid_new_privileges()
    except OSError as error:
        yield Part("kernel", lacking=f"no_new_privs: {error.strerror}")
        return
    yield _landlock(readable, writable)
    yield _seccomp()


def _landlock(readable: Sequence[Path], writable: Path) -> Part:
    grants = [(path, READ) for path in (*_libraries(writable), *map(Path, _SYSTEM), *readable)]
    try:
        version = landlock.restrict([*grants, (Path("/dev/null"), READ | WRITE), (writable, READ | WRITE)])
    except OSError as error:
        return Part("Landlock", lacking=f"Landlock: {error.strerror}")
    denies: set[Denial] = {"reading", "writing", "programs"}
    if version >= landlock.TCP_SINCE:
        denies.add("tcp")
    if version >= landlock.SCOPES_SINCE:
        denies.add("signals")
    name = f"Landlock ABI {version}"
    return Part(name, frozenset(denies), lacking=f"{name} does not deny it")


def _seccomp() -> Part:
    try:
        seccomp.restrict()
    except OSError as error:
        return Part("seccomp", lacking=f"seccomp: {error.strerror}")
    return Part("seccomp", frozenset({"attributes", "programs", "tcp", "udp", "unix_sockets", "signals", "processes"}))


def _libraries(writable: Path) -> list[Path]:
    """Where Python finds modules, and the linker libraries; without folders that hold more than code.

    Such are the current one, which Python looks into for ``-m``, and any that the task lies in.
    """
    packages = [Path(folder) for package in (jobs, medic_core, worker) for folder in package.__path__]
    found = [sys.prefix, sys.base_prefix, *sys.path[0 if sys.flags.safe_path else 1 :]]
    found += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [Path(place).resolve() for place in found if place]
    return [*packages, *(folder for folder in folders if not writable.resolve().is_relative_to(folder))]


# --- trying ----------------------------------------------------------------------------------------------------------


def _attempts(limits: IntakeLimits, outside: Path) -> Mapping[Denial, Callable[[], None]]:
    return MappingProxyType(
        {
            "resources": partial(_take_memory, limits.address_space_bytes),
            "reading": partial(_open, outside, "rb"),
            "writing": partial(_open, outside, "r+b"),
            "attributes": partial(_change_times, outside),
            "programs": _run_a_program,
            "tcp": _listen,
            "udp": partial(_make_socket, socket.AF_INET, socket.SOCK_DGRAM),
            "unix_sockets": partial(_make_socket, socket.AF_UNIX, socket.SOCK_STREAM),
            "signals": _signal_the_parent,
            "processes": _reach_the_parent,
        }
    )


def _take_memory(size: int) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0):  # addresses only, no memory
        return


def _open(path: Path, mode: str) -> None:
    with path.open(mode):
        return


def _change_times(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # to what they are


def _run_a_program() -> None:
    subprocess.run([sys.executable, "--version"], stdout=subprocess.DEVNULL, check=True)


def _listen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.bind(("127.0.0.1", 0))


def _make_socket(family: int, kind: int) -> None:
    with socket.socket(family, kind):
        return


def _signal_the_parent() -> None:
    os.kill(os.getppid(), 0)  # none is sent, only whether it could be is looked at


def _reach_the_parent() -> None:
    """Look at a limit of the parent, or have the kernel tell it of news on a pipe, of which there is none."""
    parent = os.getppid()
    reading, writing = os.pipe()
    try:
        for attempt in (
            partial(resource.prlimit, parent, resource.RLIMIT_NOFILE),
            partial(fcntl.fcntl, reading, fcntl.F_SETOWN, parent),
        ):
            with suppress(PermissionError):
                attempt()
                return
    finally:
        os.close(reading)
        os.close(writing)
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _outcome(attempt: Callable[[], None]) -> str:
    """Try; return ``done``, ``refused``, or what else went wrong."""
    try:
        attempt()
    except OSError as error:
        return "refused" if error.errno in _REFUSALS else str(error)
    return "done"


def _layer(name: Denial, before: str, after: str, parts: Sequence[Part]) -> SandboxLayer:
    """Say what came of an attempt ``before`` and ``after`` the parts of the kernel were asked to deny it."""
    by = ", ".join(part.name for part in parts if name in part.denies)
    for outcome in (before, after):
        if outcome not in ("done", "refused"):
            return SandboxLayer(name=name, state="unavailable", detail=f"it cannot be tried: {outcome}")
    if after == "refused":
        return SandboxLayer(name=name, state="active", detail=by or "refused without the sandbox, too")
    if by:
        return SandboxLayer(name=name, state="broken", detail=f"{by} let it pass")
    return SandboxLayer(
        name=name, state="unavailable", detail="; ".join(part.lacking for part in parts if part.lacking)
    )
