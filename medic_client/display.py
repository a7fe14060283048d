"""What people see while they wait, and the table at the end. Progress goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.models import Comparison, Interval, Job, JobId, Summary
from medic_client.client import MedicClient, Transferred

_WIDTH_OF_FILES = 110


def console(*, stderr: bool) -> Console:
    """Return a console for plain text, wide enough for the table also where there is no terminal."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_FILES
    return made


@contextmanager
def transfer_bars() -> Iterator[Transferred]:
    """Draw a bar for every file that is sent or fetched in the body."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True)) as bars:
        tasks = {}

        def draw(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield draw


def follow(client: MedicClient, job_id: JobId, *, timeout_seconds: float | None = None) -> Job:
    """Draw a bar of a job until it has ended, and return how it ended; without a terminal, a line for every phase.

    Raises:
        WaitTimedOutError: It had not ended after ``timeout_seconds``.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bars:
        bar, began, said = bars.add_task(job_id, total=1.0), time.monotonic(), ""
        for job in client.watch(job_id, timeout_seconds=timeout_seconds):  # noqa: B007 - the last one is returned
            now = f"{job.removal.method} {job.status}" + (f", {job.phase}" if job.phase and not job.terminal else "")
            fraction = 1.0 if job.terminal else job.progress.fraction if job.progress else 0.0
            bars.update(bar, description=now, completed=fraction)
            if not screen.is_terminal and now != said:
                screen.print(f"{time.monotonic() - began:6.1f} s  {job_id} {now}")
            said = now
    return job


def comparison_table(summary: Summary, scratch: Summary | None = None) -> Table:
    """Show every figure before and after repair and, where there is such a job, of a model trained from scratch."""
    table = Table("", "n", "before", "after", title="share of n images [95 % interval]", title_justify="left")
    if scratch:
        table.add_column("from scratch")
    for label, name in (
        ("clean accuracy", "clean_accuracy"),
        ("attack success", "attack_success_rate"),
        ("recovery accuracy", "recovery_accuracy"),
    ):
        comparison: Comparison | None = getattr(summary, name)
        if comparison:
            cells = [
                _share(comparison.before, comparison.interval_before),
                _share(comparison.after, comparison.interval_after),
            ]
            if scratch and (baseline := getattr(scratch, name)):
                cells.append(_share(baseline.after, baseline.interval_after))
            table.add_row(label, str(comparison.n), *cells)
    return table


def _share(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
