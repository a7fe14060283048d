"""``medic serve`` and the embedded service, as real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.servers import free_port
from benchmarks.tiny import ARCHITECTURE, TARGET, make_inputs
from medic_client import supervise as supervising
from medic_client.demo import curl_lines
from medic_client.supervise import (
    CELERY_WORKER,
    POLLING_WORKER,
    RETRY_SECONDS,
    GaveUpError,
    supervise,
    worker_arguments,
)
from tests.threads import one_thread

KEY = "mdk_test_" + "0123456789abcdef" * 4
Found = TypeVar("Found")


def wait_for(look: Callable[[], Found | None], seconds: float) -> Found:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return found


def environment(data: Path, **more: str) -> dict[str, str]:
    quick = {"MEDIC_LEASE_SECONDS": "2", "MEDIC_POLL_SECONDS": "0.1", "MEDIC_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quick, "MEDIC_DATA_DIR": str(data), **more}


@dataclass
class Serving:
    process: psutil.Process
    url: str
    log: Path

    def child(self, module: str) -> psutil.Process | None:
        """The running child that is ``python -m module``."""
        for child in self.process.children():
            try:
                if child.cmdline()[-1] == module and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            except (psutil.NoSuchProcess, IndexError):
                continue
        return None

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez").is_success
        except httpx.TransportError:
            return False


@contextmanager
def serving(folder: Path, **more: str) -> Iterator[Serving]:
    port, log = free_port(), folder / "log"
    settings = environment(folder / "data", MEDIC_PORT=str(port), MEDIC_API_KEY=KEY, **more)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "medic_client.main", "serve"]
        started = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=out)
    made = Serving(psutil.Process(started.pid), f"http://127.0.0.1:{port}", log)
    try:
        wait_for(made.answers, 60)
        yield made
    finally:
        started.kill()
        started.wait()


def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_a_killed_worker_and_a_killed_api_are_back_within_five_seconds(tmp_path):
    with serving(tmp_path) as service:
        for module in ("worker", "api"):
            killed = wait_for(lambda module=module: service.child(module), 20)
            killed.kill()
            back = wait_for(
                lambda module=module, killed=killed: (now := service.child(module)) and now != killed and now, 5
            )
            assert back.is_running()
        wait_for(service.answers, 5)
        assert "worker ended with status -9" in service.log.read_text()


def test_a_worker_that_is_killed_again_and_again_is_started_again_and_again(tmp_path):
    with serving(tmp_path) as service:
        for _ in range(4):
            wait_for(lambda: service.child("worker"), 5).kill()
            wait_for(lambda: not service.child("worker"), 5)
        assert wait_for(lambda: service.child("worker"), 5)
        assert service.answers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_and_its_children_in_order(tmp_path, number):
    with serving(tmp_path) as service:
        wait_for(lambda: "worker ready" in service.log.read_text(), 20)
        family = [service.process, *service.process.children(recursive=True)]
        assert len(family) == 3
        service.process.send_signal(number)
        assert service.process.wait(timeout=20) == 0
        assert all_gone(family, 1)


def test_the_children_die_with_a_service_that_is_killed(tmp_path):
    with serving(tmp_path) as service:
        children = [wait_for(lambda module=module: service.child(module), 20) for module in ("worker", "api")]
        service.process.kill()
        assert all_gone(children, 5)


@pytest.mark.parametrize(
    ("setting", "value"), [("MEDIC_PORT", "not a port"), ("MEDIC_API_KEY", "secret"), ("MEDIC_STOP_GRACE_SECONDS", "")]
)
def test_a_service_whose_settings_do_not_hold_says_why_and_ends_at_once_with_5(tmp_path, setting, value):
    command = [sys.executable, "-m", "medic_client.main", "serve"]
    settings = environment(tmp_path, **{setting: value})
    ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 5
    assert setting.removeprefix("MEDIC_").lower().replace("_", " ") in ended.stderr.lower().replace("_", " ")
    assert ended.stderr.count("ended with status 78") == ended.stderr.count("does not stay up") == 1


PROGRAM = """
import os, pathlib, signal, sys
starts, stays_up_at, status = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
starts.write_text(starts.read_text() + "x")
if len(starts.read_text()) == stays_up_at:
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
NEVER = 0


@dataclass
class Program:
    """Counts its starts in a file, ends with a status, and in the end stays up and asks the supervisor to end."""

    folder: Path
    name: str

    def arguments(self, *, stays_up_at: int, status: int) -> tuple[str, ...]:
        (self.folder / self.name).touch()
        return ("-c", PROGRAM, str(self.folder / self.name), str(stays_up_at), str(status))

    @property
    def starts(self) -> int:
        return len((self.folder / self.name).read_text())


def test_starts_that_fail_are_repeated_for_a_minute_with_longer_and_longer_waits():
    assert list(RETRY_SECONDS) == sorted(RETRY_SECONDS)
    assert 55 <= sum(RETRY_SECONDS) <= 90
    assert RETRY_SECONDS[0] <= 1
    assert RETRY_SECONDS[-1] <= 30


def test_a_program_that_fails_until_the_last_of_its_starts_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(supervising, "RETRY_SECONDS", (0.0,) * len(RETRY_SECONDS))
    program = Program(tmp_path, "late")
    supervise(program.arguments(stays_up_at=len(RETRY_SECONDS) + 1, status=1))
    assert program.starts == len(RETRY_SECONDS) + 1


@pytest.mark.parametrize(("status", "starts"), [(1, len(RETRY_SECONDS) + 1), (os.EX_CONFIG, 1)])
def test_a_program_that_never_stays_up_is_given_up(tmp_path, monkeypatch, status, starts):
    monkeypatch.setattr(supervising, "RETRY_SECONDS", (0.0,) * len(RETRY_SECONDS))
    program = Program(tmp_path, "broken")
    with pytest.raises(GaveUpError):
        supervise(program.arguments(stays_up_at=NEVER, status=status))
    assert program.starts == starts


@pytest.mark.timeout(60)
def test_a_program_that_waits_for_its_next_start_holds_up_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(supervising, "RETRY_SECONDS", (0.0, 3600.0))
    waiting, killed = Program(tmp_path, "waiting"), Program(tmp_path, "killed")
    supervise(
        waiting.arguments(stays_up_at=NEVER, status=1), killed.arguments(stays_up_at=8, status=-signal.SIGKILL.value)
    )
    assert killed.starts == 8
    assert waiting.starts == 2


def test_the_worker_is_celerys_where_there_is_a_broker_and_polls_without():
    assert worker_arguments({"MEDIC_BROKER_URL": "redis://localhost"}) == CELERY_WORKER
    assert worker_arguments({}) == worker_arguments({"MEDIC_BROKER_URL": ""}) == POLLING_WORKER


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    with one_thread():
        make_inputs(folder)
    return folder


def sanitize(inputs: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "medic_client.main", "sanitize", str(inputs / "suspect.pth")),
        *("--architecture", ARCHITECTURE, "--input-size", "16", "--clean", str(inputs / "clean.zip")),
        *("--test", str(inputs / "test.zip"), "--triggered", str(inputs / "triggered.zip"), "--target", TARGET),
        *("--set", "batch_size=16", "--set", "horizontal_flip=false", "--set", "crop_padding=1"),
        *("--out", str(out), "--json", *more),
    ]


def of_folder(data: Path) -> list[psutil.Process]:
    """Every process of a service on ``data``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEDIC_DATA_DIR") == str(data):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_sanitize_without_a_url_brings_its_own_service_and_leaves_nothing_running(inputs, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    command = sanitize(inputs, out, "--set", "epochs=2")
    ended = subprocess.run(command, env=environment(data), capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert job["status"] == "succeeded"
    assert job["summary"]["clean_accuracy"]["n"] == 150
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "report.json", "metrics.jsonl"} <= names
    assert of_folder(data) == []


def test_an_interrupted_job_stays_queued_and_the_next_service_finishes_it(inputs, tmp_path):
    data = tmp_path / "data"
    command = sanitize(inputs, tmp_path / "out", "--set", "epochs=400")
    with subprocess.Popen(command, env=environment(data), stdout=-1, stderr=-1, text=True) as started:
        try:
            said = ""
            while "running, clone" not in said:
                line = started.stderr.readline()
                assert line, said
                said += line
            started.send_signal(signal.SIGINT)
            stdout, stderr = started.communicate(timeout=60)
        finally:
            started.kill()
    assert started.returncode == 130
    assert stdout == ""
    job_id = re.search(r"`medic watch (\S+)`", stderr)[1]
    assert of_folder(data) == []
    with serving(tmp_path) as service:
        headers = {"Authorization": f"Bearer {KEY}"}

        def job() -> dict[str, object]:
            return httpx.get(f"{service.url}/v1/jobs/{job_id}", headers=headers).json()

        wait_for(lambda: job()["phase"] == "clone", 60)
        assert httpx.post(f"{service.url}/v1/jobs/{job_id}/cancel", headers=headers).status_code == 202
        wait_for(lambda: job()["status"] == "cancelled", 20)


def test_a_folder_that_is_named_like_a_package_does_not_get_in_the_way(inputs, tmp_path):
    for name in ("api", "worker", "jobs", "medic_core"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    command = ["-P", *sanitize(inputs, tmp_path / "out", "--set", "epochs=1")[1:]]
    ended = subprocess.run(
        [sys.executable, *command],
        env=environment(tmp_path / "data"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_demos_curl_lines_do_what_the_demo_does(inputs, tmp_path):
    (tmp_path / "demo's out").mkdir()
    (tmp_path / "demo's out" / "inputs").symlink_to(inputs)
    repair = {"method": "medic", "epochs": 1, "batch_size": 16, "horizontal_flip": False}
    info = {"architecture": ARCHITECTURE, "target_class": TARGET, "medic": repair}
    first, *lines = curl_lines(tmp_path / "demo's out", info).splitlines()
    assert first.startswith("export MEDIC_URL=")
    with serving(tmp_path) as service:
        ended = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(lines)],
            env={**os.environ, "MEDIC_URL": service.url, "MEDIC_API_KEY": KEY},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["status"] == "succeeded"
    repaired = load_file(tmp_path / "model.safetensors")
    assert repaired.keys() == torch.load(inputs / "suspect.pth", weights_only=True)["state_dict"].keys()
