"""What people see while they wait, and the table at the end. Progress goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.models import Comparison, Interval, Job, JobId, Summary
from medic_client.client import MedicClient, Transferred
from medic_client.errors import UnknownArtifactError, WaitTimedOutError
from medic_client.service import Service

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


def follow(service: Service, job_id: JobId, *, timeout_seconds: float | None = None) -> Job:
    """Draw a bar of a job until it has ended, and return how it ended; without a terminal, a line for every phase.

    Whoever does not wait so long, is told how to come back.

    Raises:
        WaitTimedOutError: It had not ended after ``timeout_seconds``.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    try:
        with Progress(*columns, console=screen, disable=not screen.is_terminal) as bars:
            return _draw(service.client.watch(job_id, timeout_seconds=timeout_seconds), bars)
    except (KeyboardInterrupt, WaitTimedOutError):
        goes_on = "stays queued: start `medic serve`, then" if service.embedded else "goes on: come back with"
        screen.print(f"{job_id} {goes_on} `medic watch {job_id}`", soft_wrap=True)
        raise


def _draw(seen: Iterator[Job], bars: Progress) -> Job:
    job = next(seen)
    bar, began, said = bars.add_task(job.id, total=1.0), time.monotonic(), ""
    for job in chain((job,), seen):  # noqa: B020 - the last one is returned
        now = f"{job.removal.method} {job.status}" + (f", {job.phase}" if job.phase and not job.terminal else "")
        fraction = 1.0 if job.terminal else job.progress.fraction if job.progress else 0.0
        bars.update(bar, description=now, completed=fraction)
        if bars.disable and now != said:
            bars.console.print(f"{time.monotonic() - began:6.1f} s  {job.id} {now}", soft_wrap=True)
        said = now
    return job


def download_all(client: MedicClient, job_id: JobId, folder: Path, *, names: Collection[str] = ()) -> list[Path]:
    """Fetch the artifacts of a job into ``folder``, with bars; only those of ``names`` where there are any.

    Raises:
        UnknownArtifactError: The job has no artifact of some name; nothing is then fetched.
    """
    artifacts = client.artifacts(job_id)
    if unknown := set(names) - {artifact.name for artifact in artifacts}:
        raise UnknownArtifactError(job_id, sorted(unknown))
    wanted = [artifact for artifact in artifacts if not names or artifact.name in names]
    with transfer_bars() as fetched:
        return [client.download(job_id, artifact, folder, progress=fetched) for artifact in wanted]


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
