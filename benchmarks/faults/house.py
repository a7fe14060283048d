"""A service under test: its processes are started again when they end, its servers can be taken away."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import TypeVar

import psutil
from sqlalchemy import Engine, make_url

from benchmarks.faults.witness import Witness
from benchmarks.servers import RunningPostgresql, RunningRedis, empty_database, free_port, redis_server
from benchmarks.stack import KEY, Stack, beside, family_of, stack, wait_for
from jobs.database import engine_of
from jobs.models import FileId, JobId, Purpose
from medic_client.client import MedicClient
from medic_client.errors import MedicApiError, UnreachableError
from medic_client.supervise import API, CELERY_WORKER, POLLING_WORKER

REPOSITORY = Path(__file__).resolve().parents[2]
HOOK = Path(__file__).parent / "hook"
EPOCHS = 3
JOB_SECONDS = 4.0
STAND_IN_JOB_SECONDS = 0.6
LEASE_SECONDS = 2.0
STALL_SECONDS = 30.0
GRACE_SECONDS = 5.0
ENDED_SECONDS = 240.0
ORPHAN_SECONDS = 5.0
COME_AGAIN = (HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE)
UPLOADS = "uploads"
_FILES: Sequence[tuple[str, Purpose, str]] = (
    ("model", "model", "suspect.pth"),
    ("clean_data", "clean", "clean.zip"),
    ("test_data", "test", "test.zip"),
    ("triggered_data", "triggered", "triggered.zip"),
)

Result = TypeVar("Result")


@dataclass
class Program:
    """A process of the service that is started again when it ends."""

    arguments: Sequence[str]
    settings: Mapping[str, str]
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants; none where it has just ended."""
        return family_of(self.process)

    def running(self, words: str) -> list[psutil.Process]:
        """Those of the family whose command has these words in it."""
        found = []
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found


@dataclass
class Posted:
    """A job that a client has asked for.

    Attributes:
        kind: Of the fault that it was posted beside.
        expected: How it may end: ``succeeded``, ``cancelled``, or the codes of failures.
        key: Its Idempotency-Key.
        job_id: What the service answered, as soon as it did.
    """

    kind: str
    expected: tuple[str, ...]
    key: str
    job_id: Future[JobId]


@dataclass
class House:
    """One service.

    Attributes:
        stack: Its processes and folder.
        urls: Of its APIs; clients talk to the first.
        faults: The folder in which faults are armed.
        random: Of its faults.
        job_seconds: What a job takes here at the least.
        broker: Its Redis; None where workers poll.
        database: Its PostgreSQL; None where that is SQLite.
        programs: What runs in it.
        files: Uploaded inputs.
        posted: Every job.
        uploads: Further uploads that clients are at.
        wrong: What else went wrong, by kind.
    """

    stack: Stack
    urls: tuple[str, ...]
    faults: Path
    random: Random
    job_seconds: float
    broker: RunningRedis | None = None
    database: RunningPostgresql | None = None
    programs: list[Program] = field(default_factory=list)
    files: Mapping[str, FileId] = field(default_factory=dict)
    posted: list[Posted] = field(default_factory=list)
    uploads: list[Future[Mapping[str, FileId]]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))
    witness: Witness = field(init=False)

    def keep(self, *arguments: str, **settings: str) -> Program:
        """Start a program that is to run for good."""
        program = Program(arguments, settings, self.stack.start(*arguments, **settings))
        self.programs.append(program)
        return program

    def tend(self, over: threading.Event) -> None:
        """Start again what has ended."""
        while not over.wait(0.1):
            for program in self.programs:
                if program.process.poll() is not None:
                    program.process = self.stack.start(*program.arguments, **program.settings)

    @property
    def workers(self) -> list[Program]:
        """Its workers."""
        return [program for program in self.programs if program.arguments != API]

    @property
    def apis(self) -> list[Program]:
        """Its APIs."""
        return [program for program in self.programs if program.arguments == API]

    @property
    def redis(self) -> RunningRedis:
        """Its broker.

        Raises:
            ValueError: It has none.
        """
        if self.broker is None:
            raise ValueError("this house has no broker")
        return self.broker

    @property
    def postgresql(self) -> RunningPostgresql:
        """Its database.

        Raises:
            ValueError: It is SQLite.
        """
        if self.database is None:
            raise ValueError("this house has no PostgreSQL")
        return self.database

    def engine(self) -> Engine:
        """Open its database behind its back."""
        place = self.stack.settings.get("MEDIC_DATABASE_URL")
        return engine_of(make_url(place or f"sqlite:///{self.stack.data}/medic.sqlite3"))

    # --- clients ---

    def client(self, url: str | None = None) -> MedicClient:
        """Open a client of its first API."""
        return MedicClient(url or self.urls[0], KEY)

    def upload(self) -> Mapping[str, FileId]:
        """Upload the inputs, as patiently as it takes."""
        with self.client() as client:

            def sent(name: str, purpose: Purpose) -> FileId:
                return self._patiently(UPLOADS, lambda: client.upload(self.stack.inputs / name, purpose).id)

            return {section: sent(name, purpose) for section, purpose, name in _FILES}

    def post(self, kind: str, *expected: str) -> Posted:
        """Have a client post a job, again and again under one key until it is accepted."""
        key = f"job-{len(self.posted)}"
        posted = Posted(kind, expected or ("succeeded",), key, self.pool.submit(self.accepted, kind, key))
        self.posted.append(posted)
        return posted

    def accepted(self, kind: str, key: str, url: str | None = None) -> JobId:
        """Post a job under a key until it is accepted."""
        spec = self.stack.spec(epochs=EPOCHS).model_copy(update={"metadata": {"kind": kind}})
        named = {name: getattr(spec, name).model_copy(update={"file_id": file}) for name, file in self.files.items()}
        with self.client(url) as client:
            return self._patiently(
                kind, lambda: client.create_job(spec.model_copy(update=named), idempotency_key=key).id
            )

    def _patiently(self, kind: str, attempt: Callable[[], Result]) -> Result:
        """Ask until there is a good answer; those that say "come again" are 409, 503 and 507."""
        end = time.monotonic() + ENDED_SECONDS
        while True:
            try:
                return attempt()
            except (UnreachableError, MedicApiError) as error:
                if isinstance(error, MedicApiError) and error.status not in COME_AGAIN:
                    self.wrong.append((kind, f"answered {error.status}: {error}"))
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def wait_until_few(self, most: int) -> None:
        """Wait until at most so many accepted jobs are left.

        Raises:
            TimeoutError: They do not end.
        """

        def left() -> int:
            accepted = [each.job_id.result() for each in self.posted if each.job_id.done()]
            return sum(not self.witness.has_ended(job_id) for job_id in accepted)

        wait_for(lambda: left() <= most, ENDED_SECONDS)

    def wait_until_ended(self, job_id: JobId) -> None:
        """Wait until a job was seen to end.

        Raises:
            TimeoutError: It does not.
        """
        wait_for(lambda: self.witness.has_ended(job_id), ENDED_SECONDS)

    # --- what faults share ---

    def worker_of(self, job_id: JobId) -> Program:
        """Wait until a worker has a child that works on a job, and return that worker."""
        found: Program = wait_for(
            lambda: next((each for each in self.workers if each.running(job_id)), None),
            ENDED_SECONDS,
        )
        return found

    def kill(self, program: Program, kind: str) -> None:
        """``kill -9`` a process alone: nothing of it may be left."""
        family = program.family()
        program.process.kill()
        program.process.wait()
        self.expect_gone(family[1:], kind)

    def expect_gone(self, processes: list[psutil.Process], kind: str) -> None:
        """Note the processes that are still there after five seconds."""
        _, alive = psutil.wait_procs(processes, timeout=ORPHAN_SECONDS)
        self.wrong += [(kind, f"orphan {process.pid}") for process in alive]


@contextmanager
def open_house(
    folder: Path,
    inputs: Path,
    *,
    seed: int,
    database: RunningPostgresql | None = None,
    data: Path | None = None,
    stand_in: bool = False,
) -> Iterator[House]:
    """Open a service of two APIs and two workers: embedded, or on Redis and a PostgreSQL.

    Args:
        folder: For its logs and data.
        inputs: Files of the small job.
        seed: Of its faults.
        database: With it the service runs on Redis too.
        data: Its data directory, where not in ``folder``.
        stand_in: Nothing is trained.
    """
    folder.mkdir()
    faults = folder / "faults"
    faults.mkdir()
    settings = {
        "PYTHONPATH": f"{HOOK}:{REPOSITORY}",
        "FAULTS_FOLDER": str(faults),
        "MEDIC_LEASE_SECONDS": str(LEASE_SECONDS),
        "MEDIC_STALL_SECONDS": str(STALL_SECONDS),
        "MEDIC_STOP_GRACE_SECONDS": str(GRACE_SECONDS),
        **({"FAULTS_STAND_IN": "1"} if stand_in else {}),
        **({"MEDIC_DATA_DIR": str(data)} if data else {}),
    }
    ports = [free_port(), free_port()]
    urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
    with ExitStack() as opened:
        broker = None
        if database is not None:
            broker = opened.enter_context(redis_server())
            settings |= {"MEDIC_BROKER_URL": broker.url, "MEDIC_DATABASE_URL": empty_database(database.url)}
        seconds = STAND_IN_JOB_SECONDS if stand_in else JOB_SECONDS
        service = opened.enter_context(stack(folder / "service", inputs, **settings))
        house = House(service, urls, faults, Random(seed), seconds, broker, database)  # noqa: S311 - no secret
        opened.callback(house.pool.shutdown, wait=False, cancel_futures=True)
        for port in ports:
            house.keep(*API, MEDIC_PORT=str(port))
        for _ in range(2):
            house.keep(*(CELERY_WORKER if broker else POLLING_WORKER))
        opened.enter_context(beside(house.tend))
        house.files = house.upload()
        house.witness = Witness(opened.enter_context(house.client()))
        opened.enter_context(beside(house.witness.watch))
        yield house
