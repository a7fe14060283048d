"""Whatever a child does, it ends, and how it ended is known."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.logs import about
from tests.logs import logged
from worker.children import LONGEST_LINE, Ended, Watch, run_child
from worker.process import CHILD_ENVIRONMENT
from worker.task import Advanced, Checkpointed, Event

STUB = "tests.worker.stub_child"


def watch(*, seconds: float = 60, grace: float = 60) -> Watch:
    return Watch(deadline=time.monotonic() + seconds, stopping=threading.Event(), grace_seconds=grace)


def child_that(folder: Path, *actions: tuple[str, Any], over: Watch | None = None, **settings: Any) -> Ended:
    (folder / "task.json").write_text(json.dumps(actions))
    return run_child(STUB, folder, **{"watch": over or watch(), "stall_seconds": 60, "on_event": ignore, **settings})


def ignore(_: Event) -> None:
    pass


@pytest.mark.parametrize("status", [0, 1, 75])
def test_a_child_that_ends_by_itself_is_known_by_its_status(status: int, tmp_path: Path) -> None:
    assert child_that(tmp_path, ("exit", status)) == Ended("ended", status)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_child_that_dies_by_a_signal_is_known_by_it(number: signal.Signals, tmp_path: Path) -> None:
    assert child_that(tmp_path, ("signal", number)) == Ended("ended", -number)


@pytest.mark.parametrize("before", [[], [("ignore_sigterm", None)], [("close_events", None)]])
def test_a_child_that_hangs_is_killed_once_it_has_stalled(before: list[tuple[str, Any]], tmp_path: Path) -> None:
    assert child_that(tmp_path, *before, ("hang", None), stall_seconds=1.5) == Ended("stalled", -signal.SIGKILL)


def test_a_child_that_reports_has_not_stalled(tmp_path: Path) -> None:
    heard: list[Event] = []

    def slowly(event: Event) -> None:
        time.sleep(0.4)
        heard.append(event)

    events = [("checkpoint", epoch) for epoch in range(1, 5)]
    actions = [("advance", "clone"), *events, ("exit", 0)]
    assert child_that(tmp_path, *actions, stall_seconds=1.5, on_event=slowly) == Ended("ended", 0)
    assert heard == [Advanced(phase="clone"), *(Checkpointed(epoch=epoch) for epoch in range(1, 5))]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON\n",
        "[]\n",
        "{}\n",
        '{"checkpoint": "/etc/passwd", "epoch": 1}\n',
        '{"epoch": 0}\n',
        "[" * 2 * LONGEST_LINE,
    ],
    ids=["no JSON", "list", "empty", "another file", "no epoch", "no end"],
)
def test_a_child_that_reports_what_none_does_is_ended_unheard(line: str, tmp_path: Path) -> None:
    heard: list[Event] = []
    ended = child_that(tmp_path, ("write_event", line), ("hang", None), on_event=heard.append)
    assert (ended, heard) == (Ended("unintelligible", -signal.SIGKILL), [])


def test_a_child_that_has_nothing_to_report_holds_nothing_to_report_by(tmp_path: Path) -> None:
    tell = ("tell", ["MEDIC_EVENTS_FD"])
    assert child_that(tmp_path, tell, ("list_descriptors", None), on_event=None) == Ended("ended", 0)
    assert json.loads((tmp_path / "told.json").read_text()) == {"MEDIC_EVENTS_FD": None}
    assert json.loads((tmp_path / "descriptors.json").read_text()) == [0, 1, 2]


def test_a_child_without_reports_is_ended_in_time_and_known_by_its_status(tmp_path: Path) -> None:
    assert child_that(tmp_path, ("exit", 3), on_event=None) == Ended("ended", 3)
    hanging = child_that(tmp_path, ("hang", None), on_event=None, stall_seconds=0.5)
    assert hanging == Ended("stalled", -signal.SIGKILL)


def test_a_child_gets_its_environment_unless_the_worker_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CHILD_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    child_that(tmp_path, ("tell", list(CHILD_ENVIRONMENT)))
    assert json.loads((tmp_path / "told.json").read_text()) == {**CHILD_ENVIRONMENT, "OMP_WAIT_POLICY": "ACTIVE"}


def test_a_child_learns_no_secret_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("MEDIC_DATABASE_URL", "MEDIC_BROKER_URL", "MEDIC_API_KEY")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    child_that(tmp_path, ("tell", [*secrets, "PATH"]))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {**dict.fromkeys(secrets), "PATH": os.environ["PATH"]}


def test_what_a_child_says_is_a_line_about_its_own_job_whatever_it_pretends(tmp_path: Path) -> None:
    entry = {"level": "WARNING", "message": "slow\nvery", "exception": "Traceback\n…"}
    pretended = json.dumps({**entry, "logger": "api", "job_id": "job_2", "time": "2000-01-01T00:00:00Z"})
    said = f'{pretended}\nlibpng\x1b[2J: bad\r\n{{"level": 3}}\n[]\n{"[" * 100_000}\nno end'
    with logged() as lines, about(job_id="job_1"):
        assert child_that(tmp_path, ("say", said), ("exit", 0)) == Ended("ended", 0)
    first, second, *others = lines
    assert entry.items() <= first.items()
    assert first["time"] > "2020"
    assert second["message"] == "libpng\x1b[2J: bad"
    assert [line["message"].strip("[") for line in others] == ['{"level": 3}', "]", "", "", "no end"]
    assert {(line["job_id"], line["logger"]) for line in lines} == {("job_1", STUB)}


def test_a_child_that_fails_is_logged_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("no task")
    with logged() as lines:
        run_child("worker.trainer", tmp_path, watch=watch(), stall_seconds=60, on_event=ignore)
    assert [(line["level"], line["logger"]) for line in lines] == [("CRITICAL", "worker.trainer")]
    assert "ValidationError" in lines[0]["exception"]


@pytest.mark.parametrize("reason", ["cancelled", "lease_lost"])
def test_a_child_ends_at_once_when_nobody_wants_its_work(reason: str, tmp_path: Path) -> None:
    over = watch()
    threading.Timer(0.5, getattr(over, reason).set).start()
    began = time.monotonic()
    assert child_that(tmp_path, ("ignore_sigterm", None), ("hang", None), over=over) == Ended(reason, -signal.SIGKILL)
    assert time.monotonic() - began < 5


def test_a_child_does_not_outlive_its_deadline(tmp_path: Path) -> None:
    assert child_that(tmp_path, ("hang", None), over=watch(seconds=0.5)) == Ended("deadline", -signal.SIGKILL)


def test_a_worker_that_has_to_end_waits_for_a_checkpoint_but_not_longer_than_its_grace(tmp_path: Path) -> None:
    safe, late = watch(), watch(grace=0.5)
    safe.stopping.set()
    late.stopping.set()
    kept = child_that(tmp_path, ("checkpoint", 1), ("hang", None), over=safe, on_event=lambda _: safe.safe.set())
    assert kept == Ended("stopped", -signal.SIGKILL)
    assert child_that(tmp_path, ("hang", None), over=late) == Ended("stopped", -signal.SIGKILL)


def test_what_a_child_leaves_behind_dies_with_it(tmp_path: Path) -> None:
    assert child_that(tmp_path, ("spawn", None), ("exit", 0)).returncode == 0
    grandchild = int((tmp_path / "grandchild").read_text())
    end = time.monotonic() + 5
    while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_error_of_the_listener_ends_the_child(tmp_path: Path) -> None:
    def fail(_: Event) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        child_that(tmp_path, ("advance", "clone"), ("hang", None), on_event=fail)
    assert not any(STUB in child.cmdline() for child in psutil.Process().children())
