"""A worker is seen for exactly as long as it lives, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs.models import WorkerSandbox
from jobs.workers import present, register

SANDBOX = WorkerSandbox(mode="strict", layers={"udp": "active", "reading": "unavailable"})
HOLDING = f"""
import sys, time
from pathlib import Path
from jobs.models import WorkerSandbox
from jobs.workers import register
held = register(Path(sys.argv[1]), WorkerSandbox.model_validate_json({SANDBOX.model_dump_json()!r}))
print("held", flush=True)
time.sleep(60)
"""


def test_nobody_is_there_before_any_worker_was(tmp_path: Path) -> None:
    assert present(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_workers_are_seen_until_they_close(tmp_path: Path) -> None:
    other = SANDBOX.model_copy(update={"mode": "auto"})
    with register(tmp_path, SANDBOX):
        with register(tmp_path, other):
            assert sorted(worker.mode for worker in present(tmp_path)) == ["auto", "strict"]
        assert present(tmp_path) == (SANDBOX,)
    assert present(tmp_path) == ()
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_killed_worker_is_gone_and_looking_at_a_living_one_does_not_end_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        assert present(tmp_path) == present(tmp_path) == (SANDBOX,)
        worker.kill()
    assert present(tmp_path) == ()


def test_a_worker_that_says_more_than_is_known_here_is_left_out_and_stops_nobody(tmp_path: Path) -> None:
    with register(tmp_path, SANDBOX) as later:
        later.seek(0)
        later.write('{"mode": "strict", "layers": {"unheard_of": "active"}}'.ljust(200))
        later.flush()
        assert present(tmp_path) == ()
        with register(tmp_path, SANDBOX):
            assert present(tmp_path) == (SANDBOX,)
            assert len(list((tmp_path / "workers").iterdir())) == 2


def test_what_others_left_is_swept_by_the_next(tmp_path: Path) -> None:
    register(tmp_path, SANDBOX).close()
    with register(tmp_path, SANDBOX):
        assert len(list((tmp_path / "workers").iterdir())) == 1
