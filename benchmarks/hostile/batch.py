"""``python -m benchmarks.hostile.batch``: intake, one task folder after another, under the limits of an intake child.

Reads the folders from stdin, a line each, and answers each with a line of JSON: what intake found, the CPU seconds it
took, and the largest resident memory of this process meanwhile, PyTorch with its libraries included.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
import time
from pathlib import Path

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
        forget_peak()
        began = time.process_time()
        found = inspect(task, folder)
        seconds = time.process_time() - began
        answer = {"seconds": seconds, "peak_bytes": peak_bytes(), "problems": found.model_dump(mode="json")["problems"]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def forget_peak() -> None:
    """Give freed memory back, and let the kernel begin anew with the largest memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The largest resident memory since `forget_peak`."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("the kernel does not tell the largest resident memory")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
