"""Whatever bytes come over a real socket: the answer is a problem, the connection ends and the server goes on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.api.harness import KEY
from tests.api.serving import Server, received, running

LIST = f"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
POST = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
FORM = POST.replace("/v1/jobs", "/v1/files").replace("application/json", "multipart/form-data; boundary=x")
PUT = f"PUT /v1/files?purpose=model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("wire"), MEDIC_API_KEY=KEY, MEDIC_TENANT_BYTES_LIMIT="5000000") as started:
        yield started


def answer_to(server: Server, sent: bytes) -> dict[str, Any]:
    """Send bytes as they are; what comes until the server closes is one problem document."""
    with server.connect() as connection:
        with suppress(ConnectionError):  # what it refuses it need not read
            connection.sendall(sent)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/problem+json\r\n" in head.lower() + b"\r\n", head
    document = dict(json.loads(body))
    assert document["status"] == int(head.split()[1])
    return document


def request(target: str) -> str:
    return LIST.replace("/v1/jobs", target)


REFUSED = {
    "both lengths": (PUT + "Content-Length: 3\r\n" + CHUNKED, "0\r\n\r\n", 400, "ambiguous_length"),
    "both lengths, the other way": (PUT + CHUNKED + "Content-Length: 3\r\n", "0\r\n\r\n", 400, "ambiguous_length"),
    "two lengths": (PUT + "Content-Length: 3\r\nContent-Length: 4\r\n", "abcd", 400, "malformed_request"),
    "two lengths in one": (PUT + "Content-Length: 3, 4\r\n", "abcd", 400, "malformed_request"),
    "a signed length": (PUT + "Content-Length: +3\r\n", "abc", 400, "malformed_request"),
    "a negative length": (PUT + "Content-Length: -3\r\n", "abc", 400, "malformed_request"),
    "an endless length": (PUT + f"Content-Length: {'9' * 5000}\r\n", "abc", 400, "malformed_request"),
    "an unknown coding": (PUT + "Transfer-Encoding: gzip\r\n", "abc", 400, "malformed_request"),
    "two codings": (PUT + "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 400, "malformed_request"),
    "bare LF": (LIST.replace("\r\n", "\n"), "", 400, "malformed_request"),
    "one bare LF": (LIST + "A: b\nC: d\r\n", "", 400, "malformed_request"),
    "bare CR": (LIST + "A: b\rC: d\r\n", "", 400, "malformed_request"),
    "NUL": (LIST + "A: \0\r\n", "", 400, "malformed_request"),
    "a space before the colon": (LIST + "A : b\r\n", "", 400, "malformed_request"),
    "no host": ("GET /livez HTTP/1.1\r\n", "", 400, "malformed_request"),
    "two hosts": (LIST + "Host: y\r\n", "", 400, "malformed_request"),
    "no HTTP": ("\x16\x03\x01\x02\x00\x01\r\n", "", 400, "malformed_request"),
    "a long header": (LIST + f"A: {'b' * 20_000}\r\n", "", 431, "headers_too_large"),
    "a very long header": (LIST + f"A: {'b' * 300_000}\r\n", "", 400, "malformed_request"),
    "many headers": (LIST + "A: b\r\n" * 200, "", 431, "headers_too_large"),
    "a long path": (request("/v1/jobs/" + "a" * 9000), "", 414, "target_too_long"),
    "a long query": (request("/v1/jobs?after=" + "a" * 9000), "", 414, "target_too_long"),
    "a longish id": (request("/v1/jobs/" + "a" * 8000), "", 404, "unknown_job"),
    "a longish name": (request("/v1/jobs/a/artifacts/" + "%61" * 2000), "", 404, "unknown_job"),
    "a longish page": (request("/v1/jobs?limit=" + "9" * 8000), "", 400, "invalid_parameters"),
    "a long Idempotency-Key": (FORM + f"Idempotency-Key: {'k' * 256}\r\n", "", 400, "invalid_parameters"),
    "deep JSON": (POST + "Content-Length: 500000\r\n", "[" * 500_000, 400, "malformed_json"),
    "large JSON": (POST + "Content-Length: 1048577\r\n", " " * 1_048_577, 413, "too_large"),
    "large JSON in chunks": (POST + CHUNKED, "100001\r\n" + " " * 0x100001 + "\r\n", 413, "too_large"),
    "no number of a chunk": (PUT + CHUNKED, "x\r\n", 400, "malformed_request"),
    "a chunk that lies": (PUT + CHUNKED, "3\r\nabcdef\r\n", 400, "malformed_request"),
    "a long extension of a chunk": (PUT + CHUNKED, "3;" + "a" * 30_000, 400, "malformed_request"),
    "bare LF after a chunk": (PUT + CHUNKED, "3\r\nabc\n0\r\n\r\n", 400, "malformed_request"),
    "bare LF in a trailer": (PUT + CHUNKED, "0\r\nA: b\nC: d\r\n\r\n", 400, "malformed_request"),
    "more than the quota": (PUT + "Content-Length: 5000001\r\n", "", 429, "storage_quota_exceeded"),
    "a form of more than the quota": (FORM + "Content-Length: 9000000\r\n", "", 429, "storage_quota_exceeded"),
    "a job of more than the quota": (
        FORM.replace("/v1/files", "/v1/sanitize") + "Content-Length: 9000000\r\n",
        "",
        429,
        "storage_quota_exceeded",
    ),
    "chunks of more than the quota": (PUT + CHUNKED, "500000\r\n" + "a" * 5_000_001, 429, "storage_quota_exceeded"),
}


@pytest.mark.parametrize(("head", "body", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_to_be_is_refused(server: Server, head: str, body: str, status: int, code: str) -> None:
    document = answer_to(server, (head + "Connection: close\r\n\r\n" + body).encode("latin-1"))
    assert (document["status"], document["code"]) == (status, code)
    assert_nothing_is_left(server)


def assert_nothing_is_left(server: Server) -> None:
    with server.client(KEY) as client:
        assert client.get("/v1/files").json()["files"] == client.get("/v1/jobs").json()["jobs"] == []
    assert [path.name for path in (server.data_dir / "blobs").rglob("*") if path.is_file()] == ["lock"]


@pytest.mark.parametrize(
    "length", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_bytes_that_are_not_those_announced_leave_nothing(server: Server, length: bytes) -> None:
    digest = base64.b64encode(hashlib.sha256(b"abd").digest()).decode()
    head = PUT + f"Content-Digest: sha-256=:{digest}:\r\nConnection: close\r\n"
    document = answer_to(server, head.encode() + length)
    assert (document["status"], document["code"]) == (400, "digest_mismatch")
    assert_nothing_is_left(server)


def test_a_broken_chunk_after_the_answer_ends_the_connection_and_is_no_failure(tmp_path: Path) -> None:
    with running(tmp_path, MEDIC_API_KEY=KEY) as server:
        with server.connect() as connection:
            connection.sendall(("GET /livez HTTP/1.1\r\nHost: x\r\n" + CHUNKED + "\r\n").encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.sendall(b"x\r\n")
            received(connection, seconds=8)  # before any deadline
        server.process.terminate()
        server.process.wait(20)
        assert "Traceback" not in server.log.read_text()
