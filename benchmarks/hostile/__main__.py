"""``python -m benchmarks.hostile``: hostile files through intake, one of each kind through the service.

A file passes when it is refused with the code that is right for its kind, or taken where it is harmless, within 10 s
of CPU time and 1 GiB of resident memory (of which PyTorch takes two thirds by being there), runs nothing and writes
nothing outside of its folder. The figures go to ``benchmarks/results/hostile.json``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.hostile import archives, images, models
from benchmarks.hostile.honest import make_honest
from benchmarks.hostile.intake import MOST_BYTES, MOST_SECONDS, Outcome, read_all
from benchmarks.hostile.kinds import Kind, corpus, kinds_of
from benchmarks.hostile.service import Answer, send_each
from benchmarks.machine import write_figures

RESULT = Path(__file__).parents[1] / "results" / "hostile.json"
KINDS = kinds_of(models, archives, images)


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of every file.")
@click.option("--most", type=click.IntRange(min=1), help="At most so many files of a kind; figures are then not kept.")
@click.option("--only", help="Kinds whose name has these words in it; figures are then not kept.")
def main(seed: int, most: int | None, only: str | None) -> None:
    """Read, send, print, keep the figures, and fail when anything was not as it should be."""
    kinds = [kind for kind in KINDS if not only or only in kind.name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medic-hostile-") as folder:
        place = Path(folder)
        honest = make_honest(place / "flag", trained=True)
        outcomes = list(_told(read_all(corpus(kinds, seed=seed, most=most), honest, _made(place / "intake"))))
        answers = list(_answered(send_each(kinds, honest, _made(place / "service"), seed=seed)))
    figures = summary(kinds, outcomes, answers)
    click.echo(table(figures))
    if most is None and only is None:
        command = f"python -m benchmarks.hostile --seed {seed}"
        minutes = round((time.monotonic() - began) / 60, 1)
        write_figures(RESULT, {"command": command, "seed": seed, "minutes": minutes, **figures})
    if figures["unexpected"]:
        sys.exit(1)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _told(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Say at once what is wrong."""
    for outcome in outcomes:
        if outcome.wrong:
            click.echo(_described(outcome), err=True)
        yield outcome


def _answered(answers: Iterator[Answer]) -> Iterator[Answer]:
    """Likewise."""
    for answer in answers:
        if answer.wrong:
            click.echo(_told_of(answer), err=True)
        yield answer


def _described(outcome: Outcome) -> str:
    hostile = outcome.hostile
    return f"{hostile.kind.name} #{hostile.number} as {hostile.role} data: {'; '.join(outcome.wrong)}"


def _told_of(answer: Answer) -> str:
    return f"{answer.kind.name if answer.kind else 'honest'} through the service: {'; '.join(answer.wrong)}"


def summary(kinds: Sequence[Kind], outcomes: Sequence[Outcome], answers: Sequence[Answer]) -> dict[str, Any]:
    """All figures; seconds are of CPU time but for the service's."""
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.peak_bytes)
    wrong = [_described(outcome) for outcome in outcomes if outcome.wrong]
    wrong += [_told_of(answer) for answer in answers if answer.wrong]
    reasons = [reason for each in outcomes for reason in each.wrong]
    reasons += [reason for answer in answers for reason in answer.wrong]
    return {
        "kinds": len(kinds),
        "files": len(outcomes),
        "limits": {"seconds": MOST_SECONDS, "mib": MOST_BYTES // 2**20},
        "unexpected": wrong,
        "code_run": sum(reason == "code was run" for reason in reasons),
        "written_outside": sum(reason.startswith("wrote ") for reason in reasons),
        "slowest": {"kind": slowest.hostile.kind.name, "seconds": round(slowest.seconds, 2)},
        "largest": {"kind": largest.hostile.kind.name, "mib": largest.peak_bytes // 2**20},
        "service": {
            "hostile_jobs": sum(answer.kind is not None for answer in answers),
            "honest_jobs": sum(answer.kind is None and answer.outcome != "ended" for answer in answers),
            "slowest_seconds": round(max(answer.seconds for answer in answers), 1),
        },
        "each": [_row(kind, outcomes, answers) for kind in kinds],
    }


def _row(kind: Kind, outcomes: Sequence[Outcome], answers: Sequence[Answer]) -> dict[str, Any]:
    own = [outcome for outcome in outcomes if outcome.hostile.kind is kind]
    return {
        "kind": kind.name,
        "files": len(own),
        "codes": dict(Counter(outcome.code for outcome in own).most_common()),
        "slowest_seconds": round(max(outcome.seconds for outcome in own), 2),
        "largest_mib": max(outcome.peak_bytes for outcome in own) // 2**20,
        "through_the_service": next(answer.outcome for answer in answers if answer.kind is kind),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'kind':60} {'files':>5} {'s':>6} {'MiB':>5}  codes"]
    for row in figures["each"]:
        codes = ", ".join(f"{code} {count}" for code, count in row["codes"].items())
        lines.append(f"{row['kind']:60} {row['files']:5} {row['slowest_seconds']:6.2f} {row['largest_mib']:5}  {codes}")
    service = figures["service"]
    lines += [
        f"{figures['files']} files of {figures['kinds']} kinds, {len(figures['unexpected'])} not as they should be; "
        f"code run {figures['code_run']} times, {figures['written_outside']} files written outside",
        f"slowest {figures['slowest']['seconds']} s of CPU, largest {figures['largest']['mib']} MiB; "
        f"through the service {service['hostile_jobs']} hostile and {service['honest_jobs']} honest jobs",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
