"""``python -m tests.end_to_end.stand_in``: a polling worker whose children only take a moment."""

from __future__ import annotations

import math
import time
from pathlib import Path

from tests.jobs.samples import SUMMARY
from worker import __main__, supervise
from worker.children import Ended, Watch
from worker.task import INTAKE_FILE, OUT_FOLDER, RESULT_FILE, Intake, Result

CHILD_SECONDS = 0.2


def run_child(module: str, task_dir: Path, *, watch: Watch, **_: object) -> Ended:
    """Leave what the real child would, and end when it would have to."""
    result = Result(summary=SUMMARY, artifacts={"metrics.jsonl": "application/jsonl"})
    made = (INTAKE_FILE, Intake()) if module == "worker.intake" else (RESULT_FILE, result)
    for place in (task_dir / made[0], task_dir / OUT_FOLDER / "metrics.jsonl"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(made[1].model_dump_json())
    began = time.monotonic()
    while time.monotonic() < began + CHILD_SECONDS:
        if reason := watch.reason_to_end(began, math.inf):
            return Ended(reason, -9)
        time.sleep(0.01)
    return Ended("ended", 0)


if __name__ == "__main__":
    supervise.run_child = run_child  # type: ignore[assignment]  # it hears of no events
    __main__.main()
