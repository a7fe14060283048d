"""One event is one line, in either format, whatever text is in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from contextvars import copy_context

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jobs.logs import JsonFormatter, TextFormatter, about, note
from tests.logs import logged

FORGED = 'x.zip\n2026-01-01T00:00:00.000Z INFO api: well\r\x1b[2J\x7f\x9b1A\u2028{"level": "INFO"}\u202e\x00\ud800'


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    raised = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("api", logging.INFO, "file", 1, "%s", (message,), raised)  # type: ignore[arg-type]


@given(st.text() | st.just(FORGED), st.text() | st.just(FORGED))
def test_no_text_can_forge_a_line(message: str, path: str) -> None:
    with about(path=path):
        for formatter in (JsonFormatter(), TextFormatter()):
            line = formatter.format(record(message))
            assert line.isprintable()
            assert len(line.splitlines()) == 1


@given(st.text() | st.just(FORGED))
def test_json_gives_every_text_back(message: str) -> None:
    with about(job_id=message, token=3):
        entry = json.loads(JsonFormatter().format(record(message)))
    assert (entry["message"], entry["job_id"], entry["token"]) == (message, message, 3)
    assert (entry["level"], entry["logger"], entry["time"][-1]) == ("INFO", "api", "Z")


@given(st.text() | st.just(FORGED))
def test_a_traceback_is_a_field_in_json_and_stands_indented_in_text(reason: str) -> None:
    failed = record("failed", ValueError(reason))
    entry = json.loads(JsonFormatter().format(failed))
    assert entry["exception"].startswith("ValueError")
    first, *others = TextFormatter().format(failed).split("\n")
    assert first.endswith(" INFO api: failed")
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_a_message_cannot_pretend_to_be_about_something_else() -> None:
    with about(job_id="job_1"):
        assert TextFormatter().format(record("[job_id=job_2]")).endswith(" INFO api [job_id=job_1]: [job_id=job_2]")
    with about(path="/x] [job_id=job_2"):
        assert '[path="/x] [job_id=job_2"]: ' in TextFormatter().format(record(""))


def test_what_a_block_is_about_is_known_in_threads_that_have_its_context_and_nowhere_later() -> None:
    log = logging.getLogger("test")
    with logged() as lines:
        with about(request_id="req_1"):
            with about(job_id="job_1"):
                thread = threading.Thread(target=copy_context().run, args=(log.info, "within"))
                thread.start()
                thread.join()
            thread = threading.Thread(target=copy_context().run, args=(lambda: note(tenant="birds"),))
            thread.start()
            thread.join()
            log.info("noted")
        log.info("after")
    names = [each.keys() & {"request_id", "job_id", "tenant"} for each in lines]
    assert names == [{"request_id", "job_id"}, {"request_id", "tenant"}, set()]


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_warnings_and_what_nobody_caught_are_lines_as_well(wanted: str) -> None:
    code = (
        "import threading, warnings; from jobs import logs; logs.configure(); warnings.warn('old')\n"
        "def fail(): raise ValueError('in a\\nthread')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); raise ValueError('at\\nlast')"
    )
    environment = {"MEDIC_LOG_FORMAT": wanted, "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    if wanted == "text":
        assert [line.split()[1] for line in lines if line[0] != " "] == ["WARNING", "CRITICAL", "CRITICAL"]
    else:
        warned, thread, last = map(json.loads, lines)
        assert "old" in warned["message"]
        assert thread["exception"].endswith("ValueError: in a\nthread")
        assert last["exception"].endswith("ValueError: at\nlast")
