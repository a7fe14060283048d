"""The kinds of faults, F1 to F12. Each function does one, beside a job or two of its own that it posts.

They return once the fault is over, not when the jobs have ended; all jobs are judged at the end.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import psycopg
import redis
from sqlalchemy import text, update

from benchmarks.faults.house import GRACE_SECONDS, LEASE_SECONDS, House, Program
from benchmarks.faults.injection import arm, disarm, is_armed
from benchmarks.stack import kill_tree, signal_all, wait_for
from jobs.database import BUSY_SECONDS, writing
from jobs.models import TERMINAL
from jobs.tables import jobs
from medic_client.errors import MedicApiError

HouseName = Literal["embedded", "scaled", "small disk"]
HOUSES: Sequence[HouseName] = ("embedded", "scaled", "small disk")
BOTH: tuple[HouseName, ...] = ("embedded", "scaled")

POINT_SECONDS = 120.0
POST_SECONDS = 5.0
"""A POST takes no longer while the broker is away (2 s on an idle machine)."""
AWAY_SECONDS = 3.0
AN_HOUR = 3_600_000
PARALLEL = 50


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: With its number in the programme.
        strike: Does one.
        houses: Where it can be done.
        times: In a full run, in each of these.
        trains: Whether it needs real children.
    """

    name: str
    strike: Callable[[House, str], None]
    houses: tuple[HouseName, ...]
    times: int
    trains: bool = False

    def beside_its_jobs(self, house: House) -> None:
        """Do one, and post jobs in its name."""
        self.strike(house, self.name)


KINDS: list[Kind] = []


def kind(
    name: str, *, times: int, houses: tuple[HouseName, ...] = BOTH, trains: bool = False
) -> Callable[[Callable[[House, str], None]], Callable[[House, str], None]]:
    """Count a function among the kinds."""

    def keep(strike: Callable[[House, str], None]) -> Callable[[House, str], None]:
        KINDS.append(Kind(name, strike, houses, times, trains))
        return strike

    return keep


def _some_time(house: House) -> None:
    """Wait for a random part of what a job takes."""
    time.sleep(house.random.uniform(0, house.job_seconds))


# --- processes ------------------------------------------------------------------------------------


@kind("F1 worker and its children killed", times=12)
def kill_a_worker_with_its_children(house: House, name: str) -> None:
    """At a random time."""
    house.post(name)
    _some_time(house)
    kill_tree(house.random.choice(house.workers).process)


@kind("F2 worker killed alone", times=5)
def kill_a_worker_alone(house: House, name: str) -> None:
    """While it has a child, which has to die too."""
    posted = house.post(name)
    worker = house.worker_of(posted.job_id.result())
    _some_time(house)
    house.kill(worker, name)


@kind("F2 child killed", times=5)
def kill_a_child(house: House, name: str) -> None:
    """At a random time of its life; the job stands that once."""
    job_id = house.post(name).job_id.result()
    worker = house.worker_of(job_id)
    _some_time(house)
    signal_all(worker.running(job_id), signal.SIGKILL)
    house.wait_until_ended(job_id)


@kind("F2 API killed", times=5)
def kill_an_api(house: House, name: str) -> None:
    """While a client posts."""
    house.post(name)
    time.sleep(house.random.uniform(0, 0.05))
    house.kill(house.apis[0], name)


@kind("F2 sweeper killed", times=3, houses=("scaled",))
def kill_the_sweepers(house: House, name: str) -> None:
    """All at once; their workers start others."""
    house.post(name)
    for worker in house.workers:
        signal_all(worker.running("worker.sweep"), signal.SIGKILL)


@kind("F2 worker killed in a cancelled job", times=3)
def kill_the_worker_of_a_cancelled_job(house: House, name: str) -> None:
    """Then the sweeper ends the job."""
    job_id = house.post(name, "cancelled").job_id.result()
    worker = house.worker_of(job_id)
    with house.client() as client:
        client.cancel(job_id)
    kill_tree(worker.process)
    house.wait_until_ended(job_id)


def reach(house: House, name: str, point: str) -> None:
    """Have whoever comes to a point die there: F3."""
    arm(house.faults, point)
    if point.startswith("api") and ("add_file" in point or "artifacts" in point):
        house.uploads.append(house.pool.submit(house.upload))
    else:
        house.post(name)
    wait_for(lambda: not is_armed(house.faults), POINT_SECONDS)


# --- servers --------------------------------------------------------------------------------------


def _post_without_broker(house: House, name: str) -> None:
    """A client gets its answer all the same."""
    began = time.monotonic()
    house.post(name).job_id.result()
    if (took := time.monotonic() - began) > POST_SECONDS:
        house.wrong.append((name, f"a POST took {took:.1f} s"))


@kind("F4 broker killed", times=4, houses=("scaled",))
def kill_the_broker(house: House, name: str) -> None:
    """It comes back empty."""
    house.redis.kill()
    try:
        _post_without_broker(house, name)
        time.sleep(house.random.uniform(0, AWAY_SECONDS))
    finally:
        house.redis.start_again()


@kind("F4 broker flushed", times=4, houses=("scaled",))
def flush_the_broker(house: House, name: str) -> None:
    """With a message in it, or just taken out of it."""
    house.post(name)
    with redis.Redis.from_url(house.redis.url) as connection:
        connection.flushall()


@kind("F4 broker hangs", times=4, houses=("scaled",))
def hang_the_broker(house: House, name: str) -> None:
    """Connections stay open and nobody answers."""
    house.redis.hang()
    try:
        _post_without_broker(house, name)
        time.sleep(house.random.uniform(0, AWAY_SECONDS))
    finally:
        house.redis.go_on()


@kind("F5 message lost when it was taken", times=4, houses=("scaled",))
def lose_a_message(house: House, name: str) -> None:
    """Redis gives it to a worker that is stopped, and then killed."""
    for worker in house.workers:
        signal_all(worker.family(), signal.SIGSTOP)
    house.post(name).job_id.result()
    for worker in house.workers:
        kill_tree(worker.process)


@kind("F6 worker stopped beyond its lease", times=5)
def stop_a_worker_beyond_its_lease(house: House, name: str) -> None:
    """Another takes its job; then it goes on as if nothing had happened."""
    worker = house.worker_of(house.post(name).job_id.result())
    family = worker.family()
    signal_all(family, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS * house.random.uniform(1.2, 3))
    signal_all(family, signal.SIGCONT)


@kind("F7 worker asked to stop", times=5)
def ask_a_worker_to_stop(house: House, name: str) -> None:
    """In a job, which goes on elsewhere."""
    _end_in_time(house, name, house.worker_of(house.post(name).job_id.result()))


@kind("F7 worker asked to stop, its child deaf", times=1, trains=True)
def ask_the_worker_of_a_deaf_child_to_stop(house: House, name: str) -> None:
    """It must not wait for ever."""
    job_id = house.post(name).job_id.result()
    arm(house.faults, "trainer before worker.sanitize:sanitize", action="hang", job=job_id)
    worker = house.worker_of(job_id)
    wait_for(lambda: not is_armed(house.faults), POINT_SECONDS)
    _end_in_time(house, name, worker)


def _end_in_time(house: House, name: str, worker: Program) -> None:
    process, began = worker.process, time.monotonic()
    process.terminate()
    process.wait(60)
    if (took := time.monotonic() - began) > GRACE_SECONDS + 5:
        house.wrong.append((name, f"the worker took {took:.1f} s to end"))


# --- jobs that do harm ----------------------------------------------------------------------------


def _poison(house: House, name: str, action: str, code: str, *of_its_neighbour: str) -> None:
    """Each trainer of one job does ``action``; it fails by that name, and its neighbour ends as it may."""
    job_id = house.post(name, code).job_id.result()
    arm(house.faults, "trainer before worker.sanitize:sanitize", action=action, job=job_id, lasting=True)
    house.post(name, *of_its_neighbour)
    house.wait_until_ended(job_id)
    disarm(house.faults)


@kind("F8 job kills itself", times=1, trains=True)
def poison_by_killing_itself(house: House, name: str) -> None:
    """By SIGKILL, as the kernel does where memory ends."""
    _poison(house, name, "die", "trainer_killed")


@kind("F8 job crashes", times=1, trains=True)
def poison_by_crashing(house: House, name: str) -> None:
    """By a segmentation fault."""
    _poison(house, name, "crash", "trainer_killed")


@kind("F8 job runs out of memory", times=1, trains=True)
def poison_by_memory(house: House, name: str) -> None:
    """An allocation fails."""
    _poison(house, name, "exhaust_memory", "out_of_memory")


@kind("F8 job never ends", times=1, trains=True)
def poison_by_looping(house: House, name: str) -> None:
    """It is ended for want of progress."""
    _poison(house, name, "spin", "stalled")


@kind("F8 job hangs", times=1, trains=True)
def poison_by_hanging(house: House, name: str) -> None:
    """Without progress, and without an ear for SIGTERM."""
    _poison(house, name, "hang", "stalled")


@kind("F8 job fills the disk", times=2, houses=("small disk",), trains=True)
def poison_by_filling_the_disk(house: House, name: str) -> None:
    """Its neighbour on that disk runs when the room is there again, or fails for want of it too."""
    _poison(house, name, "fill_the_disk", "storage_full", "succeeded", "storage_full")


# --- disk, database, clock ------------------------------------------------------------------------


@contextmanager
def _full_disk(house: House) -> Iterator[None]:
    filler = house.stack.data / "filler"
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))
        yield
    finally:
        filler.unlink()


@kind("F9 disk full at an upload", times=3, houses=("small disk",))
def upload_to_a_full_disk(house: House, name: str) -> None:
    """Refused with 507; taken when there is room."""
    with _full_disk(house), house.client() as client:
        try:
            client.upload(house.stack.inputs / "clean.zip", "clean")
        except MedicApiError as error:
            if error.status != HTTPStatus.INSUFFICIENT_STORAGE:
                house.wrong.append((name, f"an upload to a full disk was answered {error.status}"))
    house.upload()


@kind("F9 disk full at a POST", times=3, houses=("small disk",))
def post_to_a_full_disk(house: House, name: str) -> None:
    """Accepted, or refused and accepted later."""
    with _full_disk(house):
        house.post(name, "succeeded", "storage_full")
        time.sleep(house.random.uniform(0, AWAY_SECONDS))


@kind("F9 disk full in a job", times=3, houses=("small disk",))
def fill_the_disk_in_a_job(house: House, name: str) -> None:
    """It goes on when there is room again, or says why not."""
    house.worker_of(house.post(name, "succeeded", "storage_full").job_id.result())
    _some_time(house)
    with _full_disk(house):
        time.sleep(house.random.uniform(0, AWAY_SECONDS))


@kind("F10 database locked", times=2)
def lock_the_database(house: House, name: str) -> None:
    """For some seconds: everyone waits."""
    _lock(house, name, AWAY_SECONDS)


@kind("F10 database locked beyond all patience", times=1)
def lock_the_database_long(house: House, name: str) -> None:
    """Until clients are told to come again."""
    _lock(house, name, BUSY_SECONDS + 5.0)


def _lock(house: House, name: str, seconds: float) -> None:
    house.post(name)
    _some_time(house)
    engine = house.engine()
    with writing(engine) as connection:
        if house.database:
            connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        house.post(name)
        time.sleep(seconds)
    engine.dispose()


@kind("F10 database restarted", times=3, houses=("scaled",))
def restart_the_database(house: House, name: str) -> None:
    """In the middle of everything."""
    house.post(name)
    _some_time(house)
    house.postgresql.restart(down_seconds=house.random.uniform(0, AWAY_SECONDS))


@kind("F10 database read-only", times=3, houses=("scaled",))
def let_nobody_write(house: House, name: str) -> None:
    """As after a failover to a replica."""
    house.post(name)
    with psycopg.connect(house.postgresql.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        house.post(name)
        time.sleep(AWAY_SECONDS)
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


@kind("F11 clock an hour off", times=4)
def set_the_clock(house: House, name: str) -> None:
    """Ahead or back: every time in the rows is moved the other way, which is what a jump of the clock looks like."""
    house.worker_of(house.post(name).job_id.result())
    moved = house.random.choice((-AN_HOUR, AN_HOUR))
    times = ("created", "announced", "lease_until", "deadline")
    engine = house.engine()
    with writing(engine) as connection:
        moving = {each: jobs.c[each] - moved for each in times}
        connection.execute(update(jobs).where(jobs.c.status.not_in(TERMINAL)).values(moving))
    engine.dispose()


@kind(f"F12 {PARALLEL} POSTs under one key", times=2)
def post_at_once(house: House, name: str) -> None:
    """To two APIs; one job."""
    first = house.post(name)
    others = [house.pool.submit(house.accepted, name, first.key, house.urls[n % 2]) for n in range(1, PARALLEL)]
    answers = {first.job_id.result(), *(other.result() for other in others)}
    if len(answers) > 1:
        house.wrong.append((name, f"one key made {len(answers)} jobs"))
