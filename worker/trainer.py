"""The trainer child: ``python -m worker.trainer TASK_DIR``. Reads only what intake wrote."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import torch

from jobs import logs
from jobs.models import Failure, Phase
from jobs.models import Progress as Shown
from medic_core.removal import Progress
from medic_core.removal.training import State
from worker.children import Events
from worker.exhaustion import exit_without_room, is_out_of_gpu_memory, is_out_of_memory
from worker.process import die_with_parent
from worker.sanitize import sanitize
from worker.task import (
    CHECKPOINT_FILE,
    INTAKE_FILE,
    RESULT_FILE,
    TASK_FILE,
    Advanced,
    Checkpointed,
    Intake,
    Result,
    Task,
)

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5


class FileCheckpoint:
    """Hands the state after each epoch to the supervisor as a file, and waits until it is safe."""

    def __init__(self, task: Task, task_dir: Path, events: Events) -> None:
        self._found = task.checkpoint
        self._task_dir = task_dir
        self._events = events

    def load(self) -> State | None:
        """Return the state that an earlier attempt came to."""
        if self._found is None:
            return None
        state: State = torch.load(self._found, map_location="cpu", weights_only=True)
        log.info("going on after epoch %d", state["epoch"])
        return state

    def save(self, state: State, *, epoch: int) -> None:
        """Write the state, and return once the supervisor has stored it."""
        torch.save(state, self._task_dir / CHECKPOINT_FILE)
        self._events.send(Checkpointed(epoch=epoch))
        log.info("epoch %d done", epoch)


class ProgressRelay:
    """Tells the supervisor of every new phase, and at most twice a second of life in it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last: tuple[Phase, Progress | None] | None = None
        self._reported = 0.0
        self._first: tuple[int, float] | None = None

    def __call__(self, phase: Phase, progress: Progress | None) -> None:
        """Report a phase, and how far it has come where that is known."""
        if progress is not None:
            self._first = self._first or (progress.step, time.monotonic())
        entered = self._last is None or phase != self._last[0]
        ended = progress is not None and progress.step == progress.total_steps
        self._last = phase, progress
        self._report(at_once=entered or ended)

    def alive(self) -> None:
        """Report what was last known again."""
        self._report(at_once=False)

    def _report(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._last is None or (now < self._reported + REPORT_SECONDS and not at_once):
            return
        self._reported = now
        phase, progress = self._last
        self._events.send(Advanced(phase=phase, progress=self._described(progress, now) if progress else None))

    def _described(self, progress: Progress, now: float) -> Shown:
        first_step, since = self._first or (0, now)
        done = progress.step - first_step
        left = progress.total_steps - progress.step
        return Shown(
            fraction=progress.step / progress.total_steps,
            step=progress.step,
            total_steps=progress.total_steps,
            eta_seconds=round((now - since) / done * left, 1) if done else None,
        )


def choose_device(wanted: str) -> torch.device:
    """Resolve ``auto`` to the first GPU, or the CPU where there is none."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def train(task_dir: Path) -> Result:
    """Run the task in ``task_dir``; running out of memory is a result like any other."""
    task = Task.model_validate_json((task_dir / TASK_FILE).read_bytes())
    intake = Intake.model_validate_json((task_dir / INTAKE_FILE).read_bytes())
    torch.set_flush_denormal(True)  # before there are threads, which take it over
    torch.set_num_threads(task.threads or len(os.sched_getaffinity(0)))
    events = Events()
    relay = ProgressRelay(events)
    try:
        return sanitize(
            task,
            intake,
            task_dir,
            device=choose_device(task.device),
            checkpoint=FileCheckpoint(task, task_dir, events),
            advance=relay,
            alive=relay.alive,
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or is_out_of_gpu_memory(error):
            return _out_of_memory("gpu_out_of_memory", error)
        if not is_out_of_memory(error):
            raise
        return _out_of_memory("out_of_memory", error)


def _out_of_memory(code: str, error: Exception) -> Result:
    message = f"The trainer ran out of memory: set micro_batch_size, say to half of batch_size. {error}"
    return Result(failure=Failure(code=code, error_class="resource", message=message, retryable=True))


def main() -> None:
    """Run the one task that the command line names."""
    die_with_parent()
    logs.configure(as_json=True)  # to the supervisor
    task_dir = Path(sys.argv[1])
    with exit_without_room():
        result = train(task_dir)
        (task_dir / RESULT_FILE).write_text(result.model_dump_json())


if __name__ == "__main__":
    main()
