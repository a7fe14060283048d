"""Figures, kept as JSON with the machine that they were measured on."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from zlib import crc32


def describe_processor() -> str:
    """Name the processor, with family and model where Linux tells: one name may stand for several generations."""
    path = Path("/proc/cpuinfo")
    parts = [line.partition(":") for line in path.read_text().splitlines()] if path.exists() else []
    found = {name.strip(): value.strip() for name, _, value in parts}
    if not {"model name", "cpu family", "model"} <= set(found):
        return platform.processor()
    return f"{found['model name']} (family {found['cpu family']}, model {found['model']})"


def describe_machine() -> dict[str, str | int | None]:
    """Name the processor, how many of its cores there are, and the interpreter."""
    return {
        "cpu": describe_processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def without_settings() -> dict[str, str]:
    """Return the environment without ``MEDIC_*``, which may name the service that someone works with."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MEDIC_")}


def forget_peak() -> None:
    """Let the peak of this process start again at what it holds: a child inherits its parent's."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, and is kept for what comes, is not held
    Path("/proc/self/clear_refs").write_text("5")


def megabytes(kind: str) -> float:
    """Read a figure of this process's memory, such as its peak, ``VmHWM``."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) / 1024


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Keep figures as JSON, with the machine that they were measured on."""
    write_json(path, {"machine": describe_machine(), **figures})


@contextmanager
def held(what: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold what a string names against other processes of this machine, and say whether it is held.

    The operating system lets go of it when the process dies.

    Args:
        what: Any text.
        wait: For a process that holds it; else the body runs without it.
    """
    with (Path(gettempdir()) / f"medic-{crc32(what.encode()):08x}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the body a file to write that then takes the place of ``path`` at once; one process at a time.

    A body that fails leaves ``path`` as it was.
    """
    with held(str(path.resolve())):
        fresh = path.with_name(f".{path.name}.new")
        yield fresh
        fresh.replace(path)


def keep_among(path: Path, entry: Mapping[str, Any], key: Sequence[str]) -> None:
    """Keep an entry in a list, in the place of the one of the same ``key``; several processes may do so at once."""
    with replaced(path) as fresh:
        kept = json.loads(path.read_text()) if path.exists() else []
        others = [each for each in kept if any(each[name] != entry[name] for name in key)]
        write_json(fresh, sorted([*others, entry], key=lambda each: json.dumps([each[name] for name in key])))
