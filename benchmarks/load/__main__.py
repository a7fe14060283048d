"""``python -m benchmarks.load``: run the parts, print what was promised beside what was measured, keep the figures.

Each part that ran in full is kept by itself in ``benchmarks/results/load.json``. It ends with 1 where a promise was not
kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import click

from benchmarks.load import connections, listing, memory, overhead, polling, posting, uploads
from benchmarks.load.figures import Measured
from benchmarks.machine import describe_machine, keep_among
from medic_client.supervise import sigterm_interrupts

RESULT = Path(__file__).parents[1] / "results" / "load.json"
Part = Callable[[Path, float], Measured]
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "polling": polling.measure,
        "overhead": overhead.measure,
        "uploads": uploads.measure,
        "posting": posting.measure,
        "listing": listing.measure,
        "memory": memory.measure,
        "connections": connections.measure,
    }
)


@click.command()
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Parts to run; all, without it.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Of every number and duration; below 1 the figures are not kept.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=memory.MINUTES,
    show_default=True,
    help="Of the part memory, after its warm-up.",
)
def main(only: tuple[str, ...], scale: float, minutes: float) -> None:
    """Run, print, keep the figures, and fail when a promise was not kept."""
    parts: Mapping[str, Part] = {**PARTS, "memory": partial(memory.measure, minutes=minutes)}
    kept = True
    for name in only or PARTS:
        began = time.monotonic()
        with sigterm_interrupts(), tempfile.TemporaryDirectory(prefix=f"medic-{name}-") as folder:
            measured = parts[name](Path(folder), scale)
        click.echo(table(name, measured))
        kept &= all(target.met for target in measured.targets)
        if scale == 1:
            keep(RESULT, name, measured, time.monotonic() - began)
    if not kept:
        sys.exit(1)


def keep(path: Path, name: str, measured: Measured, seconds: float) -> None:
    """Keep a part's figures in the place of earlier ones."""
    command = f"python -m benchmarks.load --only {name}"
    told = {"part": name, "command": command, "minutes": round(seconds / 60, 1), "machine": describe_machine()}
    targets = [target.as_json() for target in measured.targets]
    keep_among(path, {**told, "targets": targets, "figures": dict(measured.figures)}, ["part"])


def table(name: str, measured: Measured) -> str:
    """A part for people."""
    lines = []
    for target in measured.targets:
        bound = f"<= {target.at_most:g}" if target.at_most is not None else f">= {target.at_least:g}"
        lines.append(f"{name:12} {target.what:46} {target.measured:10.2f}  {bound:10} {'' if target.met else 'MISSED'}")
    lines += [f"{name:12} {figure}: {value}" for figure, value in measured.figures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
