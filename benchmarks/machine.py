"""Figures, kept as JSON with the machine that they were measured on."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, str | int | None]:
    """Name the processor, how many of its cores there are, and the interpreter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
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
