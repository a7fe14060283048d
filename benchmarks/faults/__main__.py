"""``python -m benchmarks.faults``: faults on small real jobs, embedded and on Redis and PostgreSQL.

After every fault each accepted job ends exactly once, its artifacts are complete or absent, and a client that only
polls sees nothing that is not so. The figures go to ``benchmarks/results/faults.json``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from benchmarks.faults.house import House, open_house
from benchmarks.faults.kinds import HOUSES, HouseName
from benchmarks.faults.programme import Tally, faults_of, go_through, judged, points_of
from benchmarks.machine import write_figures
from benchmarks.servers import postgresql_server
from benchmarks.tiny import make_inputs

RESULT = Path(__file__).parents[1] / "results" / "faults.json"
SMALL_DISK_BYTES = 48 * 2**20
COUNTS = ("faults", "jobs", "runs", "lost", "doubled")


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of every fault.")
@click.option("--share", type=float, default=1.0, show_default=True, help="Of a full run; figures are then not kept.")
@click.option("--house", "chosen", type=click.Choice(HOUSES), multiple=True, help="By default all; likewise.")
@click.option("--only", help="Kinds whose name has these words in it; likewise.")
def main(seed: int, share: float, chosen: tuple[HouseName, ...], only: str | None) -> None:
    """Do the faults, print, keep the figures, and fail when anything was not as it should be."""
    began = time.monotonic()
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="medic-faults-") as name:
        folder = Path(name)
        inputs = folder / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        for house in chosen or HOUSES:
            _add(tallies, run(house, folder, inputs, seed=seed, share=share, only=only))
    figures = summary(tallies)
    click.echo(table(figures))
    if not (chosen or only) and share == 1:
        minutes = round((time.monotonic() - began) / 60, 1)
        write_figures(RESULT, {"command": f"python -m benchmarks.faults --seed {seed}", "minutes": minutes, **figures})
    if figures["lost"] or figures["doubled"] or figures["wrong"]:
        sys.exit(1)


def run(
    name: HouseName, folder: Path, inputs: Path, *, seed: int, share: float, only: str | None
) -> Mapping[str, Tally]:
    """Do the faults of one house."""
    faults = [
        fault
        for fault in [*points_of(name), *faults_of(name, seed=seed, share=share)]
        if not only or only in fault.name
    ]
    if not faults:
        return {}
    with _opened(name, folder, inputs, seed=seed) as house:
        for number, fault in enumerate(go_through(house, faults), start=1):
            click.echo(f"{name}: {number} of {len(faults)}, {fault.name}", err=True)
        return judged(house, faults)


@contextmanager
def _opened(name: HouseName, folder: Path, inputs: Path, *, seed: int) -> Iterator[House]:
    place = folder / name.replace(" ", "-")
    with ExitStack() as opened:
        database = opened.enter_context(postgresql_server()) if name == "scaled" else None
        data = opened.enter_context(small_disk(folder / "disk")) if name == "small disk" else None
        yield opened.enter_context(open_house(place, inputs, seed=seed, database=database, data=data))


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 48 MiB; root alone can have one.

    Raises:
        subprocess.CalledProcessError: This process may not.
    """
    place.mkdir()
    size = f"size={SMALL_DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True)  # noqa: S603, S607
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S603, S607


def _add(tallies: dict[str, Tally], more: Mapping[str, Tally]) -> None:
    for name, tally in more.items():
        known = tallies.setdefault(name, Tally())
        for each in fields(Tally):
            setattr(known, each.name, getattr(known, each.name) + getattr(tally, each.name))


def summary(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """All figures, in all and by kind. ``rate`` bounds what of such faults would still go wrong."""
    total = {count: sum(getattr(tally, count) for tally in tallies.values()) for count in COUNTS}
    wrong = [f"{name}: {reason}" for name, tally in sorted(tallies.items()) for reason in tally.wrong]
    good = not (total["lost"] or total["doubled"] or wrong)
    rate = {"rate_below": round(3 / total["faults"], 4), "confidence": 0.95} if good and total["faults"] else {}
    kinds = [{"kind": name, **asdict(tally)} for name, tally in sorted(tallies.items())]
    return {**total, "wrong": wrong, **rate, "kinds": kinds}


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    rows = [*figures["kinds"], {"kind": "in all", **figures}]
    lines = [f"{'kind':45}" + "".join(f"{count:>9}" for count in (*COUNTS, "wrong"))]
    for row in rows:
        lines.append(f"{row['kind']:45}" + "".join(f"{row[count]:9}" for count in COUNTS) + f"{len(row['wrong']):9}")
    return "\n".join([*lines, *figures["wrong"]])


if __name__ == "__main__":
    main()
