"""Which faults a house has to stand, in which order, and what came of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from random import Random

from sqlalchemy import select

from benchmarks.faults.house import ENDED_SECONDS, House
from benchmarks.faults.injection import POINTS
from benchmarks.faults.kinds import BOTH, KINDS, HouseName, reach
from jobs.database import reading
from jobs.models import Job, JobId
from jobs.tables import jobs

POINTS_KIND = "F3 died at a named point"
MOST_UNFINISHED = 1
"""Jobs that a fault may meet besides its own. Those at a point meet none: a job gives up after five dead workers."""
LAST = "last, an honest job"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: Of its kind.
        strike: Does it.
        point: Where someone dies; empty for other kinds.
    """

    name: str
    strike: Callable[[House], None]
    point: str = ""


@dataclass
class Tally:
    """What came of the faults of a kind.

    Attributes:
        faults: How many there were.
        jobs: Accepted beside them.
        runs: Attempts at these jobs.
        lost: Jobs that were accepted and did not end.
        doubled: Jobs that nobody asked for, or that took effect twice.
        wrong: Everything else that should not be.
    """

    faults: int = 0
    jobs: int = 0
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


def faults_of(house: HouseName, *, seed: int, share: float = 1.0, trains: bool = True) -> list[Fault]:
    """List the faults of a run in their order.

    Args:
        house: Where.
        seed: Of the order.
        share: Of the times that each kind comes in a full run; at least once.
        trains: Whether children are real; else those that need them are left out.
    """
    chosen = [
        Fault(kind.name, kind.beside_its_jobs)
        for kind in KINDS
        if house in kind.houses and (trains or not kind.trains)
        for _ in range(max(1, round(kind.times * share)))
    ]
    Random(seed).shuffle(chosen)  # noqa: S311 - no secret
    return chosen


def points_of(house: HouseName, *, trains: bool = True) -> list[Fault]:
    """List a fault at every point that is reached in a house; what is on a small disk is there to fill it."""
    if house not in BOTH:
        return []
    return [
        Fault(POINTS_KIND, partial(reach, name=POINTS_KIND, point=point), point)
        for point in POINTS
        if (trains or point.startswith(("api", "worker"))) and ("CeleryQueue" not in point or house == "scaled")
    ]


def go_through(house: House, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Do one fault after the other, yield each, and wait for every job in the end; give up where nothing goes on."""
    name = LAST
    try:
        for fault in faults:
            house.wait_until_few(0 if fault.name == POINTS_KIND else MOST_UNFINISHED)
            name = fault.name
            fault.strike(house)
            yield fault
        wait(house.uploads, timeout=ENDED_SECONDS)
        wait([posted.job_id for posted in house.posted], timeout=ENDED_SECONDS)
        house.wait_until_few(0)
        house.wait_until_ended(house.post(LAST).job_id.result())
    except TimeoutError as error:
        house.wrong.append((name, f"gave up: {error}"))


def judged(house: House, faults: Sequence[Fault]) -> dict[str, Tally]:
    """Count, by kind, what came of faults once they are over."""
    house.witness.look()
    tallies = {LAST: Tally()}
    tallies |= {name: Tally(faults=count) for name, count in Counter(fault.name for fault in faults).items()}
    asked: dict[JobId, tuple[str, ...]] = {}
    for posted in house.posted:
        tally = tallies[posted.kind]
        if posted.job_id.done():
            asked[posted.job_id.result()] = posted.expected
            tally.jobs += 1
        else:
            tally.wrong.append(f"never accepted: {posted.key}")
    runs, effects = _runs(house), _effects(house)
    for job in house.witness.jobs.values():
        tally = tallies[job.metadata["kind"]]
        tally.runs += runs[job.id]
        tally.lost += not job.terminal
        tally.doubled += job.id not in asked or effects[job.id] > 1
        if job.terminal and _end_of(job) not in asked.get(job.id, (_end_of(job),)):
            tally.wrong.append(f"{job.id} ended as {_end_of(job)}")
    for name, reason in (*house.wrong, *_untrue(house), *_left(house)):
        tallies.setdefault(name, Tally()).wrong.append(reason)
    return tallies


def _end_of(job: Job) -> str:
    return job.error.code if job.error else job.status


def _runs(house: House) -> dict[JobId, int]:
    """How often each job was claimed."""
    engine = house.engine()
    with reading(engine) as connection:
        found = {row.id: row.token for row in connection.execute(select(jobs.c.id, jobs.c.token))}
    engine.dispose()
    return found


def _effects(house: House) -> Counter[str]:
    """How often workers say that each job succeeded: that they were the one whose commit was taken."""
    logs = "".join(path.read_text(errors="replace") for path in house.stack.folder.glob("*.log"))
    return Counter(re.findall(r"\bjob_id=(job_\w+)\b.*: job let go of: succeeded$", logs, re.MULTILINE))


def _untrue(house: House) -> Iterator[tuple[str, str]]:
    for job_id, reason in house.witness.untrue:
        yield house.witness.jobs[job_id].metadata["kind"] if job_id else "no kind", reason
    if len(house.witness.digests) > 1:
        yield "no kind", f"{len(house.witness.digests)} different results of one job"


def _left(house: House) -> Iterator[tuple[str, str]]:
    """What is there of jobs that have ended, and should not be."""
    for upload in house.uploads:
        if not upload.done() or upload.exception():
            yield POINTS_KIND, "an upload was never taken"
    for path in (house.stack.data / "work").glob("*"):
        yield "no kind", f"left {path.name}"
