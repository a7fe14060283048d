"""What a process of Celery's pool does before its first job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.servers import free_port

ASKED_TO_DRAIN = """
import os
from celery.signals import worker_process_init
from worker import tasks
worker_process_init.send(sender=None)
os.environ.pop("MEDIC_DATABASE_URL")  # from now on it is there
supervisor = tasks.supervisor()
os.kill(os.getpid(), tasks.DRAIN)
print("drains" if supervisor.stopping.wait(10) else "does not hear")
"""


def test_a_process_that_starts_while_the_database_is_away_gives_its_job_back_all_the_same(tmp_path: Path) -> None:
    away = {
        "MEDIC_DATA_DIR": str(tmp_path),
        "MEDIC_BROKER_URL": "redis://127.0.0.1:6379/0",
        "MEDIC_DATABASE_URL": f"postgresql://medic@127.0.0.1:{free_port()}/medic",
    }
    pool_process = [sys.executable, "-c", ASKED_TO_DRAIN]
    ended = subprocess.run(pool_process, env={**os.environ, **away}, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "drains\n"), ended.stderr
