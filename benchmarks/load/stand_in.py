"""``python -m benchmarks.load.stand_in MODULE ARGUMENTS…``: run a worker whose children do no work.

The worker is the real one: claims, leases, folders, progress, artifacts and outcomes are as ever. Only the function
that starts a child is another: it leaves at once what intake and trainer would leave in the end.
"""

from __future__ import annotations

import math
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.models import Comparison, Summary
from worker.children import Ended, Watch
from worker.task import INTAKE_FILE, OUT_FOLDER, RESULT_FILE, TASK_FILE, InputFindings, Intake, Result, Task

WORK_SECONDS = 0.02
ARTIFACT = "model.safetensors"
ARTIFACT_BYTES = 256 * 1024
HALF = Comparison(before=0.5, after=0.5, n=100, interval_before=(0.4, 0.6), interval_after=(0.4, 0.6))


def run_child(module: str, task_dir: Path, *, watch: Watch, **_: Any) -> Ended:
    """Take the place of ``worker.children.run_child``; end when the child would have to."""
    task = Task.model_validate_json((task_dir / TASK_FILE).read_bytes())
    time.sleep(WORK_SECONDS)
    if reason := watch.reason_to_end(time.monotonic(), math.inf):
        return Ended(reason, -signal.SIGKILL)
    if module == "worker.intake":
        inputs = {role: InputFindings(format="stand-in") for role in task.files}
        place, left = task_dir / INTAKE_FILE, Intake(num_classes=10, inputs=inputs).model_dump_json()
    else:
        (task_dir / OUT_FOLDER).mkdir()
        own = task.job_id.encode()
        (task_dir / OUT_FOLDER / ARTIFACT).write_bytes(own * (ARTIFACT_BYTES // len(own)))
        result = Result(summary=Summary(clean_accuracy=HALF), artifacts={ARTIFACT: "application/octet-stream"})
        place, left = task_dir / RESULT_FILE, result.model_dump_json()
    place.parent.mkdir(exist_ok=True)
    place.write_text(left)
    return Ended("ended", 0)


def main() -> None:
    """Become the program, in a process where the function is replaced; the pool of Celery inherits it."""
    sys.argv = sys.argv[1:]
    with mock.patch("worker.supervise.run_child", run_child):
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
