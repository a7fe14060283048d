"""Send one hostile file of each kind through a whole service: API, job table, polling worker and its children."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.hostile.archives import ODD_NAMES
from benchmarks.hostile.honest import Honest, spec_of
from benchmarks.hostile.kinds import TAKEN, Hostile, Kind
from benchmarks.machine import without_settings
from jobs.models import Job, JobId, Purpose
from medic_client.client import MedicClient
from medic_client.errors import MedicApiError, WaitTimedOutError
from medic_client.service import own_or_remote

HUNG_SECONDS = 180.0
KINDS_PER_HONEST_JOB = 10
_FILENAME_BYTES = 255
FILENAMES = (
    *ODD_NAMES,
    "\x1b[2J.pth",
    "a\r\nSet-Cookie: b=c",
    "\u202egnp.exe",
    "\x07\x7f\x9b31m",
    "...",
    " ",
    "\\..\\x",
)
"""Of uploads; what is in them is told by no name."""


@dataclass(frozen=True)
class Answer:
    """What the service did with a file, or with an honest job where ``kind`` is None.

    Attributes:
        kind: Its kind.
        outcome: ``taken``, or the code of the refusal.
        seconds: From the start of its job to the end.
        wrong: Every way in which that is not what should have happened.
    """

    kind: Kind | None
    outcome: str
    seconds: float
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class _Sent:
    """A job that waits for its turn, or an upload that was refused."""

    kind: Kind | None
    job_id: JobId | None
    refusal: str = ""
    wrong: tuple[str, ...] = ()


def send_each(kinds: Sequence[Kind], honest: Honest, folder: Path, *, seed: int) -> Iterator[Answer]:
    """Send the first file of each kind, and an honest job after every ten; they are run in this order.

    Args:
        kinds: What to send.
        honest: What it is sent beside; its weights are trained, since the trainer sees them too.
        folder: An empty one, for all that the service writes.
        seed: Of the files.
    """
    for name in ("data", "home", "uploads"):
        (folder / name).mkdir()
    before = {path for path in folder.iterdir() if path != honest.flag}
    with own_or_remote(_environment(folder)) as service:
        for sent in list(_all_sent(service.client, kinds, honest, folder / "uploads", seed=seed)):
            yield _answered(service.client, sent, honest)
    yield left_behind(folder, before)


def _all_sent(
    client: MedicClient, kinds: Sequence[Kind], honest: Honest, folder: Path, *, seed: int
) -> Iterator[_Sent]:
    ids = _upload_honest(client, honest, folder)
    for number, kind in enumerate(kinds, start=1):
        hostile = Hostile(kind, 0, seed)
        path = folder / _shortened(FILENAMES[number % len(FILENAMES)])
        path.write_bytes(hostile.data(honest))
        yield _send(client, hostile, path, ids)
        path.unlink()
        if number % KINDS_PER_HONEST_JOB == 0 or number == len(kinds):
            yield _Sent(None, client.create_job(spec_of(ids)).id)


def _environment(folder: Path) -> dict[str, str]:
    """A service of its own, whatever settings this process has."""
    own = {"MEDIC_DATA_DIR": str(folder / "data"), "MEDIC_POLL_SECONDS": "0.1", "MEDIC_THREADS": "1"}
    home = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return {**without_settings(), **own, **home}


def _upload_honest(client: MedicClient, honest: Honest, folder: Path) -> dict[Purpose, str]:
    ids: dict[Purpose, str] = {}
    for role, data in honest.files().items():
        (folder / role).write_bytes(data)
        ids[role] = client.upload(folder / role, role).id
    return ids


def _shortened(name: str) -> str:
    return name.replace("/", "\\")[:_FILENAME_BYTES]


def _send(client: MedicClient, hostile: Hostile, path: Path, ids: dict[Purpose, str]) -> _Sent:
    try:
        file = client.upload(path, hostile.role)
        job = client.create_job(spec_of(ids | {hostile.role: file.id}))
    except MedicApiError as error:
        wrong = (f"answered {error.status}",) if error.status >= httpx.codes.INTERNAL_SERVER_ERROR else ()
        return _Sent(hostile.kind, None, str(error.problem.get("code", error.status)), wrong)
    hidden = any(unicodedata.category(character).startswith("C") for character in file.filename)
    shown = (f"its name is shown as {file.filename!r}",) if hidden else ()
    return _Sent(hostile.kind, job.id, wrong=shown)


def _answered(client: MedicClient, sent: _Sent, honest: Honest) -> Answer:
    """Wait for a job to end, those before it having ended."""
    outcome, seconds, wrong = sent.refusal, 0.0, list(sent.wrong)
    if sent.job_id is not None:
        try:
            *_, job = client.watch(sent.job_id, timeout_seconds=HUNG_SECONDS)
        except WaitTimedOutError:
            client.cancel(sent.job_id)
            return Answer(sent.kind, "hung", HUNG_SECONDS, (*wrong, "hung"))
        outcome, against = _outcome(job)
        wrong += against
        if job.timestamps.started and job.timestamps.finished:
            seconds = (job.timestamps.finished - job.timestamps.started).total_seconds()
    codes = sent.kind.codes if sent.kind else {TAKEN}
    if outcome not in codes:
        wrong.append(f"{outcome} instead of {' or '.join(sorted(codes))}")
    if honest.flag.exists():
        wrong.append("code was run")
    return Answer(sent.kind, outcome, seconds, tuple(wrong))


def _outcome(job: Job) -> tuple[str, list[str]]:
    if job.status == "succeeded":
        return TAKEN, []
    if job.error is None:
        return job.status, [f"{job.status} without an error"]
    wrong = [] if job.error.error_class == "user" else [f"told as a fault of class {job.error.error_class}"]
    return job.error.code, wrong if job.error.problems else [*wrong, "told without problems"]


def left_behind(folder: Path, before: set[Path]) -> Answer:
    """What is there when the service is gone: files where none belong, folders of tasks, processes."""
    wrong = [f"wrote {path.name!r} outside of its folder" for path in set(folder.iterdir()) - before]
    wrong += [f"left {path.name!r}" for path in (folder / "data" / "work").glob("*")]
    wrong += [f"left the process {pid}" for pid in _processes_at_home_in(folder / "home")]
    return Answer(None, "ended", 0.0, tuple(wrong))


def _processes_at_home_in(home: Path) -> Iterator[int]:
    """Those of the service and their children, who know no ``MEDIC_*``."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home):
                yield process.pid
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
