"""What an API process and a client load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "numpy", "fastapi", "worker", "api")
CASES = {
    "jobs.models": (*HEAVY, "sqlalchemy", "celery"),
    "jobs.store": (*HEAVY, "celery"),
    "jobs.artifacts": (*HEAVY, "sqlalchemy", "celery"),
    "jobs.queue": (*HEAVY, "sqlalchemy", "celery"),
    "jobs.__main__": (*HEAVY, "celery"),
}


@pytest.mark.parametrize("module", CASES)
def test_a_fresh_interpreter_loads_nothing_heavy(module: str) -> None:
    script = f"import json, sys, {module}; json.dump(list(sys.modules), sys.stdout)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = set(json.loads(ended.stdout))
    assert module in loaded
    assert loaded.isdisjoint(CASES[module])
