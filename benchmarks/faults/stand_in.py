"""A child that stands in for intake and trainer: checkpoints and artifacts of a few bytes, and no training."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs.models import Comparison, Summary
from worker.children import Events
from worker.process import die_with_parent
from worker.task import (
    CHECKPOINT_FILE,
    INTAKE_FILE,
    OUT_FOLDER,
    RESULT_FILE,
    TASK_FILE,
    Advanced,
    Checkpointed,
    Intake,
    Result,
    Task,
)

EPOCHS = 3
EPOCH_SECONDS = 0.1
ARTIFACTS = ("model.safetensors", "report.json")
SUMMARY = Summary(
    clean_accuracy=Comparison(before=0.9, after=0.8, n=10, interval_before=(0.6, 0.98), interval_after=(0.5, 0.94))
)


def main() -> None:
    """Be intake where nothing was taken in yet, else the trainer."""
    die_with_parent()
    folder = Path(sys.argv[1])
    task = Task.model_validate_json((folder / TASK_FILE).read_bytes())
    intake = folder / INTAKE_FILE
    if intake.exists():
        (folder / RESULT_FILE).write_text(_trained(task, folder).model_dump_json())
    else:
        intake.parent.mkdir()
        intake.write_text(Intake(num_classes=3).model_dump_json())


def _trained(task: Task, folder: Path) -> Result:
    events, done = Events(), int(task.checkpoint.read_text()) if task.checkpoint else 0
    for epoch in range(done + 1, EPOCHS + 1):
        events.send(Advanced(phase="clone"))
        time.sleep(EPOCH_SECONDS)
        (folder / CHECKPOINT_FILE).write_text(str(epoch))
        events.send(Checkpointed(epoch=epoch))
    out = folder / OUT_FOLDER
    out.mkdir()
    for name in ARTIFACTS:
        (out / name).write_text(f"{name} of {task.spec.removal.seed}")
    return Result(summary=SUMMARY, artifacts=dict.fromkeys(ARTIFACTS, "application/octet-stream"))


if __name__ == "__main__":
    main()
