"""The fault programme in small: each kind once, each named point once; ``make bench-faults`` does it at length."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from benchmarks.faults.__main__ import small_disk, summary
from benchmarks.faults.house import House, open_house
from benchmarks.faults.injection import POINTS
from benchmarks.faults.kinds import HouseName
from benchmarks.faults.programme import LAST, Fault, faults_of, go_through, judged, points_of
from benchmarks.stack import signal_all
from jobs.database import writing
from jobs.tables import jobs
from tests.servers import postgresql_server

pytestmark = pytest.mark.timeout(600)

ONCE = 0.001


@contextmanager
def opened(name: HouseName, folder: Path, inputs: Path, *, stand_in: bool) -> Iterator[House]:
    with ExitStack() as stack:
        database = stack.enter_context(postgresql_server()) if name == "scaled" else None
        data = stack.enter_context(small_disk(folder / "disk")) if name == "small disk" else None
        yield stack.enter_context(
            open_house(folder / "house", inputs, seed=0, database=database, data=data, stand_in=stand_in)
        )


def stand(house: House, faults: Sequence[Fault]) -> None:
    """Every accepted job ends once, as it should, and nobody sees anything else."""
    done = list(go_through(house, faults))
    figures = summary(judged(house, done))
    assert (figures["lost"], figures["doubled"], figures["wrong"]) == (0, 0, [])
    assert figures["faults"] == len(faults)
    last = next(each for each in figures["kinds"] if each["kind"] == LAST)
    assert (last["jobs"], last["runs"]) == (1, 1)


def chosen(name: HouseName, *words: str, trains: bool = False) -> list[Fault]:
    faults = faults_of(name, seed=0, share=ONCE, trains=trains)
    return [fault for fault in faults if any(word in fault.name for word in words)]


@pytest.mark.parametrize("point", POINTS)
def test_a_point_is_where_its_name_says(point: str) -> None:
    role, moment, target, *_ = point.split(" ")
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found)
    assert role in ("api", "worker", "intake", "trainer")
    assert moment in ("before", "in", "after")


def test_no_job_is_lost_or_doubled_by_a_fault_of_any_kind(inputs: Path, tmp_path: Path) -> None:
    with opened("scaled", tmp_path, inputs, stand_in=True) as house:
        kinds = [
            fault for fault in faults_of("scaled", seed=0, share=ONCE, trains=False) if "patience" not in fault.name
        ]
        stand(house, [*kinds, *(point for point in points_of("scaled", trains=False) if "Queue" in point.point)])


def test_no_job_is_lost_or_doubled_by_a_death_at_any_named_point(inputs: Path, tmp_path: Path) -> None:
    with opened("embedded", tmp_path, inputs, stand_in=True) as house:
        stand(house, [*points_of("embedded", trains=False), *chosen("embedded", "F10 database locked", "F12")])


def test_a_job_that_does_harm_fails_by_name_and_one_whose_child_dies_ends_with_the_same_weights(
    inputs: Path, tmp_path: Path
) -> None:
    deaths = [fault for fault in points_of("embedded") if fault.point.startswith(("intake", "trainer"))]
    with opened("embedded", tmp_path, inputs, stand_in=False) as house:
        stand(house, [*deaths, *chosen("embedded", "kills itself", "out of memory", trains=True)])


def test_no_job_is_lost_or_doubled_by_a_full_disk(inputs: Path, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    with opened("small disk", tmp_path, inputs, stand_in=True) as house:
        stand(house, faults_of("small disk", seed=0, share=ONCE, trains=False))


def test_the_judge_sees_what_is_lost_doubled_and_untrue(inputs: Path, tmp_path: Path) -> None:
    with opened("embedded", tmp_path, inputs, stand_in=True) as house:
        ends = ("succeeded", "succeeded", "nan_loss", "succeeded")
        lost, _unasked, failed, twice = (house.post("F", end).job_id.result() for end in ends)
        house.wait_until_few(0)
        engine = house.engine()
        with writing(engine) as connection:  # nobody else holds the lock here, so none is stopped with it in hand
            for worker in house.workers:
                signal_all(worker.family(), signal.SIGSTOP)
            connection.execute(update(jobs).where(jobs.c.id == lost).values(status="running"))
        engine.dispose()
        del house.posted[1]
        (house.stack.folder / "another.log").write_text(f"[job_id={twice}]: job let go of: succeeded\n")
        tally = judged(house, [Fault("F", lambda _: None)])["F"]
        for worker in house.workers:
            signal_all(worker.family(), signal.SIGCONT)
    assert (tally.jobs, tally.lost, tally.doubled) == (3, 1, 2)
    assert sorted(tally.wrong) == sorted([f"{failed} ended as succeeded", "succeeded became running"])
