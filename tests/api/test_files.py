"""Uploads arrive whole or leave nothing."""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import anyio
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api.uploads import announced_sha256, displayable
from jobs.artifacts import FolderStore
from jobs.errors import StorageFullError
from jobs.settings import Settings
from tests.api.harness import KEY, problem, upload

Stored = Callable[[], list[str]]
FIELD = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nmodel'
SURROGATE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\\ud800\r\n--x--\r\n'


def digest_header(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def put(client: httpx.Client, content: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.put("/v1/files", params={"purpose": "model"}, content=content, headers=named)


class Multipart(Protocol):
    def __call__(self, client: httpx.Client, content: bytes) -> httpx.Response: ...


def by_put(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.put("/v1/files", params={"purpose": "model", "filename": "m.pth"}, content=content)


def by_form(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.post("/v1/files", data={"purpose": "model"}, files={"file": ("m.pth", content)})


@pytest.mark.parametrize("send", [by_put, by_form])
@pytest.mark.parametrize("size", [0, 1, 1024**2 - 1, 1024**2, 1024**2 + 1])
def test_a_file_is_recorded_as_it_was_sent(
    client: httpx.Client, blobs: FolderStore, stored: Stored, send: Multipart, size: int
) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    answer = send(client, content)
    assert answer.status_code == 201
    file = answer.json()
    assert (file["bytes"], file["sha256"]) == (size, hashlib.sha256(content).hexdigest())
    assert (file["purpose"], file["filename"], file["inspection"]) == ("model", "m.pth", None)
    assert blobs.path(file["sha256"]).read_bytes() == content
    assert stored() == [file["sha256"]]
    assert client.get(answer.headers["location"]).json() == file


def test_a_body_without_a_length_is_taken_too(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"ab", b"", b"c")

    assert put(client, chunks()).json()["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_the_announced_digest_is_checked(client: httpx.Client, stored: Stored) -> None:
    assert put(client, b"abc", content_digest=digest_header(b"abc")).status_code == 201
    kept = stored()
    problem(put(client, b"abd", content_digest=digest_header(b"abc")), 400, "digest_mismatch")
    assert stored() == kept
    assert len(client.get("/v1/files").json()["files"]) == 1


def test_other_digests_beside_the_one_that_is_checked_are_ignored(client: httpx.Client) -> None:
    assert put(client, b"abc", content_digest=f"sha-512=:AAAA:, {digest_header(b'abc')}").status_code == 201
    problem(put(client, b"abd", content_digest=f"sha-512=:AAAA:, {digest_header(b'abc')}"), 400, "digest_mismatch")


@pytest.mark.parametrize(
    "header", ["", "sha-256", "sha-256=abc", "sha-256=:abc:", "sha-256=:é:", "sha-512=:AAAA:", ","]
)
def test_a_digest_that_cannot_be_checked_is_refused(client: httpx.Client, stored: Stored, header: str) -> None:
    answer = client.put(
        "/v1/files", params={"purpose": "model"}, content=b"abc", headers={"Content-Digest": header.encode()}
    )
    problem(answer, 400, "malformed_digest")
    assert stored() == []


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_is_read_as_it_was_written(digest: bytes) -> None:
    header = f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert announced_sha256([header]) == announced_sha256([f"{header};a=1;b"]) == digest
    assert announced_sha256(["md5=:AAAA:", header]) == digest


@pytest.mark.parametrize("header", ["Content-Range", "Content-Encoding"])
def test_what_is_not_the_whole_file_as_it_is_is_refused(client: httpx.Client, header: str) -> None:
    answer = client.put("/v1/files", params={"purpose": "model"}, content=b"a", headers={header: "bytes 0-0/2"})
    problem(answer, 400, "partial_or_encoded")


@pytest.mark.parametrize("send", [by_put, by_form])
def test_a_file_beyond_the_limit_is_refused_with_the_limit(
    client: httpx.Client, stored: Stored, settings: Settings, send: Multipart
) -> None:
    document = problem(send(client, bytes(settings.upload_limit_bytes + 1)), 413, "too_large")
    limit = settings.upload_limit_bytes if send is by_put else settings.multipart_limit_bytes
    assert str(limit) in document["detail"]
    assert ("PUT /v1/files" in document["detail"]) == (send is by_form)
    assert stored() == []


def test_a_file_of_the_limit_is_taken(client: httpx.Client, settings: Settings) -> None:
    assert put(client, bytes(settings.upload_limit_bytes)).status_code == 201


class Uploading:
    """Speaks ASGI by hand, to see what the application reads and when."""

    def __init__(self, app: FastAPI, *messages: dict[str, Any], **headers: str) -> None:
        self._app, self._messages, self.read = app, list(messages), 0
        self.sent: list[Any] = []
        given_headers = {"authorization": f"Bearer {KEY}", **{key.replace("_", "-"): headers[key] for key in headers}}
        self._scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "PUT",
            "path": "/v1/files",
            "query_string": b"purpose=model",
            "headers": [(name.encode(), value.encode()) for name, value in given_headers.items()],
        }

    def run(self) -> int | None:
        """Return the status of the answer, None when there was none."""

        async def receive() -> dict[str, Any]:
            self.read += 1
            return self._messages.pop(0)

        async def send(message: Any) -> None:
            self.sent.append(message)

        anyio.run(self._app, self._scope, receive, send)
        return next((message["status"] for message in self.sent if message["type"] == "http.response.start"), None)


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(app: FastAPI) -> None:
    exchange = Uploading(app, content_length=str(10**15))
    assert exchange.run() == 413
    assert exchange.read == 0


def test_a_stream_is_refused_as_soon_as_it_passes_the_limit(app: FastAPI, stored: Stored) -> None:
    mebibyte = {"type": "http.request", "body": bytes(1024**2), "more_body": True}
    exchange = Uploading(app, *[mebibyte] * 100)
    assert exchange.run() == 413
    assert exchange.read == 4
    assert stored() == []


def test_a_client_that_goes_away_leaves_nothing(app: FastAPI, client: httpx.Client, stored: Stored) -> None:
    some = {"type": "http.request", "body": bytes(2 * 1024**2), "more_body": True}
    exchange = Uploading(app, some, {"type": "http.disconnect"})
    assert exchange.run() is None
    assert exchange.read == 2
    assert stored() == []
    assert client.get("/v1/files").json()["files"] == []


@pytest.mark.parametrize("send", [by_put, by_form])
def test_a_full_disk_is_507_and_leaves_nothing(
    client: httpx.Client, stored: Stored, send: Multipart, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("no room left on the disk; nothing was kept")

    monkeypatch.setattr("jobs.artifacts._FolderWriter.write", full)
    assert problem(send(client, b"abc"), 507, "storage_full")["retryable"]
    assert stored() == []
    monkeypatch.undo()
    assert send(client, b"abc").status_code == 201


@pytest.mark.parametrize(
    ("data", "files", "pointers"),
    [
        ({}, {"file": ("f", b"")}, {"/purpose"}),
        ({"purpose": "weights"}, {"file": ("f", b"")}, {"/purpose"}),
        ({"purpose": "model", "more": "1"}, {"wrong": ("f", b"")}, {"/file", "/more", "/wrong"}),
        ({"purpose": ["model", "model"]}, {"file": ("f", b"")}, {"/purpose"}),
        ({"file": "text"}, {"purpose": ("f", b"")}, {"/file", "/purpose"}),
    ],
)
def test_every_problem_of_a_form_is_listed(
    client: httpx.Client, data: dict[str, Any], files: dict[str, Any], pointers: set[str]
) -> None:
    document = problem(client.post("/v1/files", data=data, files=files), 422, "invalid_form")
    assert {error["pointer"] for error in document["errors"]} == pointers


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("", b"", 415),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--y\r\n", 400),
        ("multipart/form-data; boundary=x; charset=unicode_escape", SURROGATE, 415),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n", 400),
        ("multipart/form-data; boundary=x", SURROGATE.replace(b"\\ud800", b"\xed\xa0\x80\0"), 400),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 422),
        ("multipart/form-data; boundary=x", FIELD + b"\r\n--x--\r\n", 422),
        ("multipart/form-data; boundary=x", FIELD, 400),
        ("multipart/form-data; boundary=x", FIELD + b"\r\n--x\r\n", 400),
        ("multipart/form-data; boundary=x", FIELD + b"\r\n--x-", 400),
        ("multipart/form-data; boundary=x", FIELD + bytes(1024**2) + b"\r\n--x--\r\n", 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/sanitize"])
def test_what_is_no_form_is_refused(
    client: httpx.Client, path: str, content_type: str, body: bytes, status: int
) -> None:
    problem(client.post(path, content=body, headers={"Content-Type": content_type}), status)


@given(st.text(st.characters(exclude_categories=())))
def test_a_shown_name_is_safe_and_says_no_less_than_it_must(name: str) -> None:
    shown = displayable(name)
    assert len(shown) <= 255
    assert unicodedata.is_normalized("NFC", shown)
    assert {unicodedata.category(character) for character in shown}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert displayable(shown) == shown


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Modèle 1.pth", "Modèle 1.pth"),
        ("e\u0301.pth", "é.pth"),
        ("a\0b\n\u202egpj.exe\ud800", "abgpj.exe"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_name_is_shown_without_its_tricks(sent: str, shown: str) -> None:
    assert displayable(sent) == shown


def test_a_filename_is_data(client: httpx.Client) -> None:
    names = ["../../etc/passwd", "a\0\u202eb", "'; DROP TABLE files; --", "名前.zip", ""]
    recorded = [upload(client, "clean", b"x", name)["filename"] for name in names]
    assert recorded == ["../../etc/passwd", "ab", "'; DROP TABLE files; --", "名前.zip", ""]


def test_files_are_listed_page_by_page_newest_first(client: httpx.Client) -> None:
    ids = [upload(client, "model", b"x")["id"] for _ in range(5)]
    seen, after = [], None
    while True:
        page = client.get("/v1/files", params={"limit": 2, **({"after": after} if after else {})}).json()
        assert len(page["files"]) <= 2
        seen += [file["id"] for file in page["files"]]
        if (after := page["next"]) is None:
            break
    assert seen == ids[::-1]


def test_a_deleted_file_is_gone(client: httpx.Client) -> None:
    path = f"/v1/files/{upload(client, 'model', b'x')['id']}"
    assert client.delete(path).status_code == 204
    problem(client.get(path), 404, "unknown_file")
    problem(client.delete(path), 404, "unknown_file")


def test_a_file_that_a_job_needs_stays(client: httpx.Client, spec: dict[str, Any], queued: str) -> None:
    path = f"/v1/files/{spec['model']['file_id']}"
    problem(client.delete(path), 409, "file_in_use")
    client.post(f"/v1/jobs/{queued}/cancel")
    assert client.delete(path).status_code == 204
