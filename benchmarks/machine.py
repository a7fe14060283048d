"""Figures, kept as JSON with the machine that they were measured on."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Keep figures as JSON, with the machine that they were measured on."""
    path.write_text(json.dumps({"machine": describe_machine(), **figures}, indent=2) + "\n")


def keep_among(path: Path, entry: Mapping[str, Any], key: Sequence[str]) -> None:
    """Keep an entry in a list, in the place of the one of the same ``key``; several processes may do so at once."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        others = [each for each in json.loads(file.read() or "[]") if any(each[name] != entry[name] for name in key)]
        entries = sorted([*others, entry], key=lambda each: json.dumps([each[name] for name in key]))
        file.truncate(0)
        file.write(json.dumps(entries, indent=2) + "\n")
