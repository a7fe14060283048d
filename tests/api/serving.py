"""``python -m api`` as a process of its own, and raw bytes to and from it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from api.deadlines import USUAL_PATIENCE, Patience

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running API and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str
    data_dir: Path

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)


@contextmanager
def running(data_dir: Path, patience: Patience = USUAL_PATIENCE, **settings: str) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDIC_")}
    environment |= {"MEDIC_DATA_DIR": str(data_dir), "MEDIC_PORT": "0", **settings}
    start = f"from api.__main__ import main; from api.deadlines import Patience; main({patience})"
    command = [sys.executable, *(["-m", "api"] if patience == USUAL_PATIENCE else ["-c", start])]
    with (
        tempfile.NamedTemporaryFile(prefix="medic-log-") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as process,
    ):
        try:
            said = Path(log.name)
            wait_until(lambda: "listening on" in said.read_text() or process.poll() is not None, 30)
            listening = re.search(r"listening on (http://127\.0\.0\.1:[1-9][0-9]*)", said.read_text())
            assert listening is not None, said.read_text()
            yield Server(process, said, listening[1], data_dir)
        finally:
            process.kill()


def upload_head(key: str, length: int) -> bytes:
    lines = [
        "PUT /v1/files?purpose=model HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def exchange(server: Server, request: str) -> tuple[int, dict[str, str], str]:
    """Send bytes as they are and read until the server closes: status, headers and body."""
    with server.connect() as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    return int(status.split()[1]), headers, body


def received(connection: socket.socket, *, while_sending: bytes = b"", seconds: float = 30) -> bytes:
    """Read until the server closes, and send on meanwhile."""
    connection.settimeout(0.1)
    end = time.monotonic() + seconds
    answer = b""
    while time.monotonic() < end:
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(while_sending)
        with suppress(TimeoutError):
            try:
                chunk = connection.recv(65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                return answer
            answer += chunk
    raise AssertionError(f"the server did not close within {seconds} seconds; it sent {answer[:200]!r}")
