"""Nobody can hold a connection open: who is too slow is cut off and leaves nothing, and honest clients are served."""

from __future__ import annotations

import asyncio
import json
import resource
import selectors
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from api.__main__ import _within_descriptors
from api.deadlines import USUAL_PATIENCE, Patience, PunctualBody, PunctualProtocol
from tests.api.harness import KEY, problem
from tests.api.serving import Server, received, running, upload_head, wait_until

MEBIBYTE = 1024**2
SOON = Patience(head_seconds=1.5, stall_seconds=1.5)
SHOWN = Patience(stall_seconds=8, bytes_per_second=4)


class SleeplessSelector(selectors.DefaultSelector):
    """Lets time pass instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(0)


def is_cut_off(chunks: list[tuple[float, int]]) -> bool:
    """Whether a body whose chunks come after such waits, with so many bytes, is taken for too slow."""
    coming = iter(chunks)

    async def receive() -> dict[str, Any]:
        seconds, size = next(coming)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    async def read() -> bool:
        body = PunctualBody(receive, SHOWN)
        for _ in chunks:
            await body()
        return body.is_late

    selector = SleeplessSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    try:
        return loop.run_until_complete(read())
    finally:
        loop.close()


def falls_behind(chunks: list[tuple[float, int]]) -> bool:
    """The same by definition: of some run of chunks the waits are longer than all before its last has earned."""
    waits = [0.0, *accumulate(seconds for seconds, _ in chunks)]
    earned = [0.0, *accumulate(size / SHOWN.bytes_per_second for _, size in chunks)]
    return any(
        waits[last] - waits[first] > SHOWN.stall_seconds + earned[last - 1] - earned[first]
        for last in range(1, len(waits))
        for first in range(last)
    )


waits = st.integers(0, 40).map(lambda quarters: quarters / 4 + 0.01)  # so that none is just in time


@given(st.lists(st.tuples(waits, st.integers(0, 30)), max_size=12))
def test_a_body_is_cut_off_once_it_is_behind_its_pace_by_what_it_may_stall(chunks: list[tuple[float, int]]) -> None:
    assert is_cut_off(chunks) == falls_behind(chunks)


def test_whoever_keeps_the_pace_is_never_cut_off_and_a_head_start_is_worth_no_more_than_a_stall() -> None:
    assert not is_cut_off([(1.0, 4)] * 1000)
    assert is_cut_off([(1.0, 3)] * 1000)
    assert is_cut_off([(0.0, 10**6), (8.5, 1)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that soon loses its patience."""
    with running(tmp_path_factory.mktemp("soon"), SOON, MEDIC_API_KEY=KEY) as started:
        yield started


WORD, LINES = b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("requests", [0, 1], ids=["of the first", "of the second"])
@pytest.mark.parametrize(("start", "more"), [(WORD, b""), (WORD, b"T"), (LINES, b""), (LINES, b"a")])
def test_the_head_of_a_request_is_waited_for_in_vain(server: Server, requests: int, start: bytes, more: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(requests * b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: requests == 0 or connection.recv(65536).endswith(b"}"))
        connection.sendall(start)
        received(connection, while_sending=more)


def test_a_connection_that_asks_nothing_ends(server: Server) -> None:
    with server.connect() as connection:
        assert received(connection) == b""


def form_head(path: str, key: str, length: int = 9 * MEBIBYTE) -> str:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
    )


PART = '--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + "w" * 2 * MEBIBYTE
UPLOADS = {
    "file": upload_head(KEY, 9 * MEBIBYTE) + bytes(2 * MEBIBYTE),
    "file in chunks": upload_head(KEY, 9).replace(b"Content-Length: 9", b"Transfer-Encoding: chunked")
    + b"200000\r\n"
    + bytes(0x200000)
    + b"\r\n",
    "form": (form_head("/v1/files", "of-a-form") + PART).encode(),
    "sanitize": (form_head("/v1/sanitize", "of-both") + PART).encode(),
    "spec": form_head("/v1/jobs", "of-a-job", 9000).encode() + b"{",
}


@pytest.mark.parametrize("trickle", [b"", b"1"], ids=["stops", "trickles"])
@pytest.mark.parametrize("sent", UPLOADS.values(), ids=UPLOADS.keys())
def test_an_upload_that_is_too_slow_is_told_so_and_leaves_nothing(server: Server, sent: bytes, trickle: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        answer = received(connection, while_sending=trickle)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert (document["code"], document["retryable"]) == ("too_slow", True)
    assert list((server.data_dir / "blobs" / "tmp").iterdir()) == []
    assert open_files(server) == []
    with server.client(KEY) as client:
        assert client.get("/v1/files").json()["files"] == client.get("/v1/jobs").json()["jobs"] == []


def test_an_idempotency_key_of_an_upload_that_was_too_slow_is_free_for_any_other(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall((form_head("/v1/files", "once") + PART).encode())
        assert received(connection).startswith(b"HTTP/1.1 408 ")
    with server.client(KEY) as client:
        headers, files = {"Idempotency-Key": "once"}, {"file": ("other", b"other")}
        answer = client.post("/v1/files", headers=headers, data={"purpose": "clean"}, files=files)
        assert answer.status_code == 201
        assert "idempotent-replayed" not in answer.headers
        client.delete(f"/v1/files/{answer.json()['id']}")


def test_a_body_that_was_refused_does_not_go_on_for_ever(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(upload_head(KEY, 10**15))
        answer = received(connection, while_sending=bytes(1000))
    assert answer.startswith(b"HTTP/1.1 413 ")


def open_files(server: Server) -> list[str]:
    """The artifacts and unfinished uploads that the server holds open."""
    blobs = str(server.data_dir / "blobs")
    return [file.path for file in psutil.Process(server.process.pid).open_files() if file.path.startswith(blobs)]


def connections(server: Server) -> int:
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(connection.status != psutil.CONN_LISTEN for connection in found)


@pytest.fixture
def download(queued: str, finish: Callable[..., None]) -> bytes:
    """A request for more bytes than any buffer takes."""
    finish(queued, weights=bytes(32 * MEBIBYTE))
    path = f"/v1/jobs/{queued}/artifacts/weights"
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


def test_a_reader_that_stops_is_cut_off_and_no_file_stays_open(tmp_path: Path, download: bytes) -> None:
    with running(tmp_path, SOON, MEDIC_API_KEY=KEY) as server, server.connect() as connection:
        connection.sendall(download)
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: connections(server) == 0, 30)
        wait_until(lambda: open_files(server) == [])
        assert len(received(connection)) < 32 * MEBIBYTE


def test_readers_that_stop_hold_no_thread(tmp_path: Path, download: bytes) -> None:
    many = 60  # more than there are threads for requests
    with running(tmp_path, Patience(stall_seconds=300), MEDIC_API_KEY=KEY) as server, ExitStack() as readers:
        for _ in range(many):
            readers.enter_context(server.connect()).sendall(download)
        wait_until(lambda: len(open_files(server)) == many, 60)
        with server.client(KEY) as client:
            assert client.get("/v1/limits").status_code == 200


def test_nobody_can_ask_for_ever_without_taking_the_answers(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        wait_until(lambda: connections(server) > 0)
        wait_until(lambda: connections(server) == 0, 30)


def test_the_rest_of_an_answer_is_not_waited_for_for_ever_however_small_it_is() -> None:
    async def answer(_scope: object, _receive: object, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": bytes(50_000)})

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    protocol: Any = partial(PunctualProtocol, patience=SOON, idle=OrderedDict())
    server = uvicorn.Server(uvicorn.Config(answer, http=protocol, lifespan="off", log_config=None))
    serving = threading.Thread(target=server.run, args=([listening],))
    serving.start()
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(listening.getsockname())
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: server.server_state.total_requests == 1)
            wait_until(lambda: not server.server_state.connections, 30)
            assert len(received(connection)) < 50_000
    finally:
        server.should_exit = True
        serving.join()


def test_a_crowd_may_knock_while_the_server_is_busy(server: Server) -> None:
    with ExitStack() as crowd:
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(200):
                crowd.enter_context(server.connect())
        finally:
            server.process.send_signal(signal.SIGCONT)


def test_connections_without_a_request_give_way_to_those_with_one(tmp_path: Path) -> None:
    with running(tmp_path, Patience(connections=20), MEDIC_API_KEY=KEY) as server, ExitStack() as idle:
        files = psutil.Process(server.process.pid).num_fds
        before = files()
        seen = []
        for number in range(60):
            connection = idle.enter_context(server.connect())
            connection.sendall(b"GET / HTTP" if number % 2 else b"")
            with server.client(KEY) as client:
                assert client.get("/v1/limits").status_code == 200
            seen.append(files())
        assert max(seen) < before + 40  # some for the database
        assert connections(server) <= 21


def test_who_comes_while_all_are_busy_is_asked_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path, Patience(stall_seconds=300, connections=2), MEDIC_API_KEY=KEY) as server:
        with ExitStack() as uploads, server.client(KEY) as client:
            for _ in range(2):
                uploads.enter_context(server.connect()).sendall(UPLOADS["file"])
            wait_until(lambda: len(list((tmp_path / "blobs" / "tmp").iterdir())) == 2)
            assert problem(client.get("/v1/limits"), 503, "busy")["retry_after"] > 0
        with server.client(KEY) as client:
            wait_until(lambda: client.get("/v1/limits").status_code == 200)


@pytest.mark.parametrize(("descriptors", "connections"), [(100, 25), (10**6, USUAL_PATIENCE.connections)])
def test_no_more_connections_than_descriptors_suffice_for(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, connections: int
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, descriptors))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert _within_descriptors(USUAL_PATIENCE).connections == connections
    assert asked == [(descriptors, descriptors)]
