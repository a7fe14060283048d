"""Put hostile files through the worker's intake, in processes that read one after the other."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hostile.honest import Honest, spec_of
from benchmarks.hostile.kinds import TAKEN, Hostile
from jobs.models import JobId, Problem, Purpose
from worker.process import CHILD_ENVIRONMENT
from worker.task import PREPARED_FOLDER, TASK_FILE, Inputs, Task

MOST_SECONDS = 10.0
MOST_BYTES = 2**30
HUNG_SECONDS = 120.0
_DETAIL_CHARACTERS = 12_000


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        hostile: The file.
        code: The first problem's, ``TAKEN`` without problems, or how the process ended.
        wrong: Every way in which that is not what should have happened.
        seconds: Of CPU time.
        peak_bytes: Largest resident memory of the process, PyTorch included.
    """

    hostile: Hostile
    code: str
    wrong: tuple[str, ...]
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class Reader:
    """Processes that read task folders one after the other, a new one when the last has died."""

    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def read(self, task: Path) -> dict[str, object] | str:
        """Return what the process answers, or how it came to its end."""
        process = self._process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        process.stdin.write(f"{task}\n".encode())
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            in_time = selector.select(HUNG_SECONDS)
        line = process.stdout.readline() if in_time else b""
        if line.endswith(b"\n"):
            answer: dict[str, object] = json.loads(line)
            return answer
        self.end()
        return "crashed" if in_time else "hung"

    def end(self) -> None:
        """End the present process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process whose home, working and temporary folder is ours to watch."""
        home = {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        code_is_here = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hostile.batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env={**CHILD_ENVIRONMENT, **os.environ, **home, **code_is_here},
        )


def read_all(corpus: Iterable[Hostile], honest: Honest, folder: Path) -> Iterator[Outcome]:
    """Read every file beside honest ones, and judge what came of it.

    Args:
        corpus: The files.
        honest: What they are made from; its flag must lie in ``folder``.
        folder: An empty one, in which nothing but a task's own folder may change.
    """
    (folder / "honest").mkdir()
    inputs: dict[Purpose, Path] = {}
    for role, data in honest.files().items():
        inputs[role] = folder / "honest" / role
        inputs[role].write_bytes(data)
    with _reader(folder) as reader:
        for hostile in corpus:
            task = folder / "task"
            before = _contents(folder, task)
            (task / PREPARED_FOLDER).mkdir(parents=True)
            path = task / hostile.role
            path.write_bytes(hostile.data(honest))
            _write_task(task, inputs | {hostile.role: path})
            answer = reader.read(task)
            yield _judged(hostile, answer, _strays(task, hostile.role) | (_contents(folder, task) ^ before), honest)
            shutil.rmtree(task)


@contextmanager
def _reader(folder: Path) -> Iterator[Reader]:
    home = folder / "home"
    home.mkdir()
    reader = Reader(home)
    try:
        yield reader
    finally:
        reader.end()


def _write_task(task: Path, inputs: dict[Purpose, Path]) -> None:
    spec = spec_of({role: f"file_{role}" for role in inputs})
    written = Task(job_id=JobId("job_hostile"), spec=spec, inputs=Inputs(**inputs))
    (task / TASK_FILE).write_text(written.model_dump_json())


def _contents(folder: Path, task: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path != task and task not in path.parents}


def _strays(task: Path, role: Purpose) -> set[Path]:
    """What lies in a task's folder and is neither ours nor intake's."""
    prepared = {f"{PREPARED_FOLDER}/{name}.safetensors" for name in ("suspect", "clean", "test", "triggered")}
    expected = {task / name for name in (TASK_FILE, role, PREPARED_FOLDER, *prepared)}
    return set(task.rglob("*")) - expected


def _judged(hostile: Hostile, answer: dict[str, object] | str, outside: set[Path], honest: Honest) -> Outcome:
    wrong = [f"wrote {path.name!r} outside of its folder" for path in sorted(outside)]
    if honest.flag.exists():
        wrong.append("code was run")
    if isinstance(answer, str):
        return Outcome(hostile, answer, (*wrong, answer))
    seconds, peak = float(str(answer["seconds"])), int(str(answer["peak_bytes"]))
    problems = [Problem.model_validate(problem) for problem in _list(answer["problems"])]
    code = problems[0].code if problems else TAKEN
    wrong += _against(problems, hostile)
    if code not in hostile.kind.codes:
        wrong.append(f"{code} instead of {' or '.join(sorted(hostile.kind.codes))}")
    if seconds > MOST_SECONDS:
        wrong.append(f"took {seconds:.1f} s")
    if peak > MOST_BYTES:
        wrong.append(f"took {peak / 2**20:.0f} MiB")
    return Outcome(hostile, code, tuple(wrong), seconds, peak)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _against(problems: Sequence[Problem], hostile: Hostile) -> Iterator[str]:
    """What is not good about refusals: the wrong file blamed, words that cannot be read."""
    for problem in problems:
        if not (problem.pointer or "").startswith(f"/{hostile.role}"):
            yield f"{problem.pointer} blamed for the {hostile.role} file"
        if not problem.detail.isprintable():
            yield f"{problem.code} is told in characters that cannot be shown"
        if len(problem.detail) > _DETAIL_CHARACTERS:
            yield f"{problem.code} is told in {len(problem.detail)} characters"
        if problem.detail.count(". ") == 0:
            yield f"{problem.code} does not say what to do"
