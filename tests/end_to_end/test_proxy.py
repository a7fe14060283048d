"""The proxy of docker-compose, as its file stands, before a real API."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import free_port
from tests.api.harness import KEY, PROBLEM_FIELDS, problem
from tests.api.serving import ROOT, Server, received, running, upload_head, wait_until
from tests.servers import need

CONF = ROOT / "docker/nginx.conf"
LIMIT = 3 * 1024**2


@contextmanager
def proxy_before(address: str, folder: Path) -> Iterator[str]:
    """Start nginx on the file of compose, with another address of the API and folders of its own."""
    need("nginx")
    port = free_port()
    text = CONF.read_text().replace("http://api:8000", address).replace("listen 8000", f"listen 127.0.0.1:{port}")
    text = text.replace("/tmp/", f"{folder}/").replace("/dev/stderr", f"{folder}/log")  # noqa: S108  the image's own
    (folder / "nginx.conf").write_text(text)
    command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "log", "-g", "daemon off;"]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: _listens(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"MEDIC_API_KEY": KEY, "MEDIC_UPLOAD_LIMIT_BYTES": str(LIMIT)}
    with running(tmp_path_factory.mktemp("api"), **settings) as started:
        yield started


@pytest.fixture(scope="module")
def proxy(api: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proxy")
    folder.chmod(0o755)
    with proxy_before(api.url, folder) as url:
        yield replace(api, url=url)


@pytest.fixture
def client(proxy: Server) -> Iterator[httpx.Client]:
    with proxy.client(KEY) as opened:
        yield opened


def test_uploads_and_answers_go_through_as_they_are(client: httpx.Client, api: Server) -> None:
    content = os.urandom(LIMIT)
    made = client.put("/v1/files", params={"purpose": "model"}, content=content)
    assert (made.status_code, made.json()["bytes"]) == (201, LIMIT)
    in_chunks = client.put("/v1/files", params={"purpose": "clean"}, content=iter([content[:9], content[9:99]]))
    assert (in_chunks.status_code, in_chunks.json()["bytes"]) == (201, 99)
    with api.client(KEY) as straight:
        path = made.headers["location"]
        assert client.get(path).json() == straight.get(path).json()
    problem(client.get("/v1/jobs/job_1"), 404, "unknown_job")
    assert set(client.patch("/v1/files").headers["allow"].split(", ")) == {"GET", "POST", "PUT"}


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_beyond_the_limit_hears_so_from_the_api(client: httpx.Client, chunked: bool) -> None:
    content = bytes(LIMIT + 1)
    answer = client.put("/v1/files", params={"purpose": "model"}, content=iter([content]) if chunked else content)
    problem(answer, 413, "too_large")


def test_an_upload_reaches_the_api_while_it_is_sent(proxy: Server) -> None:
    with proxy.connect() as connection:
        connection.sendall(upload_head(KEY, 2 * 1024**2) + bytes(1024**2 + 1000))
        temporary = proxy.data_dir / "blobs/tmp"
        wait_until(lambda: any(path.stat().st_size for path in temporary.iterdir()))
    wait_until(lambda: list(temporary.iterdir()) == [])


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ("GET /livez\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
        (f"GET /livez HTTP/1.1\r\nHost: x\r\nA: {'a' * 20_000}\r\n\r\n", 400, "malformed_request"),
        (f"GET /{'a' * 20_000} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 414, "target_too_long"),
        (f"GET /{'a' * 9_000} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 414, "target_too_long"),
        ("GET /livez HTTP/9.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
        ("PUT /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "malformed_request"),
        ("TRACE /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
        ("GET /problems/away HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, "not_found"),
    ],
)
def test_what_is_refused_before_the_api_has_its_form(proxy: Server, sent: str, status: int, code: str) -> None:
    with proxy.connect() as connection:
        connection.sendall(sent.encode())
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)


def test_an_api_that_is_away_is_a_problem_that_passes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with proxy_before("http://127.0.0.1:9", tmp_path) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/v1/jobs", json={})
    assert problem(answer, 503, "unavailable")["retryable"]
    assert answer.headers["retry-after"] == "5"


def test_every_refusal_in_the_file_is_a_problem_document() -> None:
    documents = [json.loads(text) for text in re.findall(r"return \d+ '(.+)';", CONF.read_text())]
    assert len(documents) == 6
    for document in documents:
        assert document.keys() - {"retry_after"} == PROBLEM_FIELDS
        assert document["type"] == f"urn:medic:problem:{document['code']}"
