"""``python -m benchmarks.hostile.batch``: intake, one task folder after another, under the limits of an intake child.

Reads the folders from stdin, a line each, and answers each with a line of JSON: what intake found, the CPU seconds it
took, and the largest resident memory of this process meanwhile, PyTorch with its libraries included.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

from benchmarks.machine import forget_peak, megabytes
from worker.inspection import inspect
from worker.sandbox.limits import limit_resources
from worker.task import TASK_FILE, IntakeLimits, Task


def main() -> None:
    """Answer until there is nothing more to read."""
    limit_resources(IntakeLimits())
    gc.freeze()  # else each collection goes through all of PyTorch, which takes ten times as long as a file
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        task = Task.model_validate_json((folder / TASK_FILE).read_bytes())
        gc.collect()
        forget_peak()
        began = time.process_time()
        found = inspect(task, folder)
        seconds = time.process_time() - began
        answer = {
            "seconds": seconds,
            "peak_bytes": round(megabytes("VmHWM") * 2**20),
            "problems": found.model_dump(mode="json")["problems"],
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
