"""``python -m worker.intake TASK_DIR``: the process that parses what users sent, in a sandbox of its own making.

Ends with 0 when ``intake.json`` is written, whatever it says; with anything else it has crashed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import logs
from jobs.models import SandboxLayer
from worker.exhaustion import exit_without_room
from worker.process import die_with_parent
from worker.sandbox.confine import confine, lacking
from worker.task import INTAKE_FILE, PREPARED_FOLDER, TASK_FILE, Intake, Task


def main(arguments: Sequence[str]) -> None:
    """Prepare the task in the folder that is named."""
    die_with_parent()
    logs.configure(as_json=True)  # to the supervisor
    (folder,) = map(Path, arguments)
    task = Task.model_validate_json((folder / TASK_FILE).read_bytes())
    with exit_without_room():
        sandbox = _confined(task, folder)
        found = _inspected(task, folder).model_copy(update={"sandbox": sandbox})
        written = folder / INTAKE_FILE
        temporary = written.with_name(f".{written.name}")
        temporary.write_text(found.model_dump_json(), encoding="utf-8")
        temporary.replace(written)  # half an answer is never seen


def _confined(task: Task, folder: Path) -> tuple[SandboxLayer, ...]:
    """Restrict this process to its task. Not even the rest of the task's folder is left to it."""
    prepared = folder / PREPARED_FOLDER
    prepared.mkdir(exist_ok=True)
    layers = confine(task.limits, readable=task.inputs.paths(), writable=prepared, outside=folder / TASK_FILE)
    if task.sandbox == "strict" and (missing := lacking(layers)):
        sys.exit(f"MEDIC_SANDBOX=strict, and this process is not confined: {missing}")
    return layers


def _inspected(task: Task, folder: Path) -> Intake:
    from worker.inspection import inspect  # PyTorch and all parsers are loaded inside of the sandbox

    return inspect(task, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
