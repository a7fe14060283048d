"""The real processes of a service, to be started, killed and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import without_settings
from benchmarks.tiny import ARCHITECTURE, TARGET
from jobs.models import DataSpec, FileId, Job, JobId, JobSpec, ModelSpec, TriggeredSpec
from medic_client.client import MedicClient
from medic_client.supervise import API, CELERY_WORKER, POLLING_WORKER
from medic_core.config import MedicConfig, Preprocessing

KEY = "mdk_test_" + "0123456789abcdef" * 4
POLLING = POLLING_WORKER
CELERY = CELERY_WORKER


@dataclass
class Stack:
    """A service in a folder of its own. Every process writes its log there."""

    folder: Path
    inputs: Path
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """Its data directory."""
        return Path(self.settings.get("MEDIC_DATA_DIR", self.folder / "data"))

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start one process in a group of its own; ``settings`` beside those of all."""
        log = self.folder / f"{len(self.processes)}-{arguments[1]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, *arguments],
                env={**self.environment(), **settings},
                stdout=out,
                stderr=out,
                process_group=0,
            )
        self.processes.append(process)
        return process

    def environment(self) -> dict[str, str]:
        """What processes of the service start with."""
        return {
            **without_settings(),
            "MEDIC_DATA_DIR": str(self.data),
            "MEDIC_API_KEY": KEY,
            "MEDIC_PORT": "0",
            "MEDIC_LEASE_SECONDS": "2",
            "MEDIC_SWEEP_SECONDS": "0.5",
            "MEDIC_POLL_SECONDS": "0.1",
            "MEDIC_ANNOUNCE_AGAIN_SECONDS": "1",
            "MEDIC_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has written so far."""
        number = self.processes.index(process)
        return next(self.folder.glob(f"{number}-*.log")).read_text(errors="replace")

    def url(self) -> str:
        """Start the API and return where it listens."""
        process = self.start(*API)
        listening = wait_for(lambda: re.search(r"listening on (http://\S+)", self.log(process)), 30)
        return str(listening[1])

    def api(self, key: str = KEY) -> MedicClient:
        """Start the API and return a client of it."""
        return MedicClient(self.url(), key)

    def spec(self, **settings: Any) -> JobSpec:
        """The tiny job, on local paths; ``settings`` are those of the removal, or ``test``/``triggered`` as paths."""
        removal = {"epochs": 3, "batch_size": 16, "horizontal_flip": False, "crop_padding": 1, **settings}
        return JobSpec(
            model=ModelSpec(
                file_id=FileId(str(self.inputs / "suspect.pth")),
                architecture=ARCHITECTURE,
                preprocessing=Preprocessing(input_size=(16, 16)),
            ),
            clean_data=DataSpec(file_id=FileId(str(self.inputs / "clean.zip"))),
            test_data=DataSpec(file_id=FileId(str(self.inputs / "test.zip"))),
            triggered_data=TriggeredSpec(file_id=FileId(str(self.inputs / "triggered.zip")), target_class=TARGET),
            removal=MedicConfig(**removal),
        )

    def end(self) -> None:
        """End every process that is left, with its group."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                kill_tree(process)


@contextmanager
def stack(folder: Path, inputs: Path, **settings: str) -> Iterator[Stack]:
    """A service whose processes end with the block."""
    folder.mkdir(exist_ok=True)
    made = Stack(folder, inputs, settings)
    try:
        yield made
    finally:
        made.end()


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """Return the first true value of ``condition``.

    Raises:
        TimeoutError: There was none in time.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.05)
    return value


def wait_ended(client: MedicClient, job_id: JobId, seconds: float = 120) -> Job:
    """Follow a job to its end."""
    *_, last = client.watch(job_id, timeout_seconds=seconds)
    return last


@contextmanager
def beside(loop: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a loop in a thread, and tell it by the event when the block is over."""
    over = threading.Event()
    thread = threading.Thread(target=loop, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a process and all its descendants; none where it has just ended."""
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` a process and all its descendants at once."""
    family = family_of(process)
    signal_all(family, signal.SIGSTOP)  # nobody notices the death of another
    signal_all(family, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family[1:], timeout=5)


def digests(client: MedicClient, job: Job) -> dict[str, str]:
    """SHA-256 of each artifact whose bytes depend on nothing but the inputs."""
    return {each.name: each.sha256 for each in client.artifacts(job.id) if each.name != "report.json"}
