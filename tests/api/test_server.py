"""``python -m api`` as a process: what only a real server and a real socket can show."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from jobs.keys import new_key
from tests.api.harness import problem
from tests.api.serving import ROOT, Server, exchange, running, upload_head, wait_until

MEBIBYTE = 1024**2


@pytest.fixture
def key() -> str:
    return new_key()


@pytest.fixture
def server(tmp_path: Path, key: str) -> Iterator[Server]:
    with running(tmp_path, MEDIC_API_KEY=key) as started:
        yield started


def test_the_first_start_shows_a_key_and_later_ones_do_not(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        wait_until(lambda: "shown only this once: mdk_" in first.log.read_text())
        shown = re.search(r"mdk_\S+", first.log.read_text())
        assert shown is not None
        with first.client(shown[0]) as client:
            assert client.get("/v1/limits").status_code == 200
    with running(tmp_path) as second:
        wait_until(lambda: "medic keys create" in second.log.read_text())
        assert "mdk_" not in second.log.read_text()
        with second.client(shown[0]) as client:
            assert client.get("/v1/limits").status_code == 200
    assert not any(shown[0].encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("setting", [{"MEDIC_PORT": "many"}, {"MEDIC_API_KEY": "secret"}])
def test_a_malformed_setting_stops_the_start(tmp_path: Path, setting: dict[str, str]) -> None:
    environment = {**os.environ, "MEDIC_DATA_DIR": str(tmp_path), **setting}
    ended = subprocess.run([sys.executable, "-m", "api"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == os.EX_CONFIG
    assert "does not start" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_line_of_a_log_for_machines_is_an_object_whatever_is_asked_for(tmp_path: Path, key: str) -> None:
    with running(tmp_path, MEDIC_API_KEY=key, MEDIC_LOG_FORMAT="json") as server, server.client(key) as client:
        client.get("/v1/x%0A%7B%22level%22:%20%22INFO%22%7D%1B%5B2J%0D%0A", headers={"X-Request-Id": "mine"})
        exchange(server, "GET / HTTP/9\r\n\r\n")
        wait_until(lambda: "mine" in server.log.read_text())
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (asked,) = [line for line in lines if line.get("request_id") == "mine"]
    assert {"level", "logger", "message"} <= asked.keys()
    assert (asked["method"], asked["status"], 0 <= asked["seconds"] < 60) == ("GET", 404, True)
    assert asked["path"] == '/v1/x\n{"level": "INFO"}\x1b[2J\r\n'


def test_a_log_for_machines_holds_no_key(tmp_path: Path) -> None:
    with running(tmp_path, MEDIC_LOG_FORMAT="json") as server:
        wait_until(lambda: "medic keys create" in server.log.read_text())
        assert "mdk_" not in server.log.read_text()
        assert '"logger": "api"' in server.log.read_text()


def test_an_upload_stays_in_bounded_memory_and_leaves_the_service_free(server: Server, key: str) -> None:
    mebibyte = os.urandom(MEBIBYTE)
    seen = [psutil.Process(server.process.pid).memory_info().rss]
    waits: list[float] = []

    def body() -> Iterator[bytes]:
        for _ in range(200):
            yield mebibyte
            seen.append(psutil.Process(server.process.pid).memory_info().rss)

    def upload() -> None:
        with server.client(key) as client:
            answers.append(client.put("/v1/files", params={"purpose": "model"}, content=body()))

    answers: list[httpx.Response] = []
    uploading = threading.Thread(target=upload)
    uploading.start()
    with server.client(key) as client:
        while uploading.is_alive():
            before = time.monotonic()
            assert client.get("/livez").status_code == 200
            waits.append(time.monotonic() - before)
            time.sleep(0.01)
    uploading.join()
    assert answers[0].json()["sha256"] == hashlib.sha256(mebibyte * 200).hexdigest()
    assert max(seen) - seen[0] < 32 * MEBIBYTE
    assert len(waits) > 5
    assert max(waits) < 2


def test_an_upload_that_breaks_off_leaves_nothing(server: Server, key: str) -> None:
    temporary = server.data_dir / "blobs" / "tmp"
    with server.connect() as connection:
        connection.sendall(upload_head(key, 9 * MEBIBYTE) + bytes(MEBIBYTE))
        wait_until(lambda: any(temporary.iterdir()))
    wait_until(lambda: not any(temporary.iterdir()))
    with server.client(key) as client:
        assert client.get("/v1/files").json()["files"] == []


def test_two_lengths_are_refused_and_the_connection_closed(server: Server, key: str) -> None:
    smuggled = "GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n"
    request = (
        f"PUT /v1/files?purpose=model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(smuggled) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    )
    status, headers, body = exchange(server, request)
    assert (status, headers["connection"]) == (400, "close")
    assert headers["content-type"] == "application/problem+json"
    assert "ambiguous_length" in body
    assert "HTTP/1.1" not in body


def test_a_host_header_is_not_believed(server: Server, key: str) -> None:
    for host in ("evil.example", "a b", "", "[::"):
        status, _, body = exchange(
            server,
            f"GET /v1/jobs/job_x HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n",
        )
        assert status in {400, 404}
        assert host == "" or host not in body


def test_the_server_says_nothing_of_itself(server: Server, key: str) -> None:
    with server.client(key) as client:
        answer = client.get("/v1/jobs/job_x")
    problem(answer, 404)
    assert "server" not in answer.headers


def test_sigterm_ends_it_promptly_also_with_a_client_in_the_middle(server: Server, key: str) -> None:
    with server.connect() as connection:
        connection.sendall(upload_head(key, 99) + b"some")
        wait_until(lambda: any((server.data_dir / "blobs" / "tmp").iterdir()))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)
