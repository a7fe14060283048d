"""A service of a part's own: an API and workers as real processes, each with its log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType

import psutil

from benchmarks.machine import without_settings
from benchmarks.stack import wait_for
from jobs.models import DataSpec, JobSpec, ModelSpec
from medic_client.client import MedicClient
from medic_client.supervise import API, CELERY_WORKER, POLLING_WORKER, end, start

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
GRACE_SECONDS = 15.0
STAND_IN = ("-m", "benchmarks.load.stand_in")
STAND_IN_POLLING = (*STAND_IN, *POLLING_WORKER[1:])
STAND_IN_CELERY = (*STAND_IN, *CELERY_WORKER[1:])
"""Workers whose children do no work; all else is the real thing."""


@dataclass(frozen=True)
class Service:
    """Where it is, how to get in, and its processes. ``logs`` are those of the workers."""

    url: str
    key: str
    api: psutil.Process
    workers: tuple[psutil.Process, ...]
    logs: tuple[Path, ...]

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def port(self) -> int:
        """On the loopback interface."""
        return int(self.url.rpartition(":")[2])

    def client(self) -> MedicClient:
        """A client, to be closed."""
        return MedicClient(self.url, self.key)


@contextmanager
def running(
    folder: Path, *workers: Sequence[str], api: Sequence[str] = API, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Service]:
    """Start a service in an empty folder, with the defaults but for ``settings``; it ends with the block."""
    own = {"MEDIC_DATA_DIR": str(folder / "data"), "MEDIC_PORT": "0", "MEDIC_THREADS": "1", **settings}
    with started(folder, api, *workers, settings=own) as ((process, log), *others):
        found = said(process, log, r"listening on (\S+)\n(?:.*\n)*.*only this once: (mdk_\w+)\n")
        yield Service(found[1], found[2], process, tuple(each for each, _ in others), tuple(log for _, log in others))


@contextmanager
def started(
    folder: Path, *programs: Sequence[str], settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[tuple[psutil.Process, Path], ...]]:
    """Start programs of this interpreter, each with its log in ``folder``, and end them with the block."""
    environment = {**without_settings(), "PYTHONPATH": str(ROOT), **settings}
    folder.mkdir(exist_ok=True)
    children: list[Popen[str]] = []
    logs = [folder / f"{number}.log" for number, _ in enumerate(programs)]
    try:
        for log, program in zip(logs, programs, strict=True):
            with log.open("w") as out:
                children.append(start(program, environment=environment, stderr=out.fileno()))
        yield tuple((psutil.Process(child.pid), log) for child, log in zip(children, logs, strict=True))
    finally:
        end(children, grace_seconds=GRACE_SECONDS)


def said(process: psutil.Process, log: Path, pattern: str) -> re.Match[str]:
    """Wait until a process that starts has said what ``pattern`` looks for."""

    def look() -> re.Match[str] | None:
        if process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"a process does not start:\n{log.read_text()}")
        return re.search(pattern, log.read_text())

    found: re.Match[str] = wait_for(look, START_SECONDS)
    return found


def small_spec(client: MedicClient, folder: Path) -> JobSpec:
    """A job on files of a few bytes, uploaded: for workers whose children do no work, or for none."""
    path = folder / "input"
    path.write_text("a few bytes")
    return JobSpec(
        model=ModelSpec(file_id=client.upload(path, "model").id, architecture="medic/wide_resnet16_1"),
        clean_data=DataSpec(file_id=client.upload(path, "clean").id),
    )


def peak_mb(process: psutil.Process) -> float:
    """The most that a process ever held, in millions of bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
