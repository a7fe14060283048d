"""Sixteen uploads of a GiB at once: the API's memory, and its pace beside that of hashing and writing alone.

The bare writer (``bare.py``) gets the same bytes from the same senders through TCP, too, and keeps them by the code of
the artifact store: so it pays for senders, hash, disk and ``fsync`` as the API does, and what is compared is HTTP. The
two take turns, since disks change their pace; what was written is deleted after each turn.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.load.figures import Measured, Target
from benchmarks.load.service import peak_mb, running, said, started

UPLOADS = 16
MEBIBYTES = 1024
ROUNDS = 3
MOST_MB = 150.0
LEAST_SHARE = 0.8
TIMEOUT_SECONDS = 600.0
CHUNK = os.urandom(1024**2)


def measure(folder: Path, scale: float) -> Measured:
    """Send to the bare writer and to the API in turn."""
    mebibytes = max(1, round(MEBIBYTES * scale))
    bare, api, peaks = [], [], []
    for _ in range(ROUNDS):
        bare.append(_bare(folder / "bare", mebibytes))
        seconds, peak = _api(folder / "api", mebibytes)
        api.append(seconds)
        peaks.append(peak)
    pace = UPLOADS * mebibytes * len(CHUNK) / 1e6
    return Measured(
        (
            Target("peak memory of the API, MB", max(peaks), at_most=MOST_MB),
            Target("pace over that of bare writing, medians", median(bare) / median(api), at_least=LEAST_SHARE),
        ),
        {
            "uploads": UPLOADS,
            "mebibytes": mebibytes,
            "bare_mb_per_second": [round(pace / seconds, 1) for seconds in bare],
            "api_mb_per_second": [round(pace / seconds, 1) for seconds in api],
        },
    )


def _bare(folder: Path, mebibytes: int) -> float:
    with started(folder, ("-m", "benchmarks.load.bare", str(folder / "blobs"))) as ((process, log),):
        port = int(said(process, log, r"listening on (\d+)\n")[1])
        seconds = _sent(port, b"", mebibytes, answer=b"")
    shutil.rmtree(folder)
    return seconds


def _api(folder: Path, mebibytes: int) -> tuple[float, float]:
    with running(folder) as service:
        head = (
            f"PUT /v1/files?purpose=model HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.key}\r\n"
            f"Content-Length: {mebibytes * len(CHUNK)}\r\nConnection: close\r\n\r\n"
        )
        seconds = _sent(service.port, head.encode(), mebibytes, answer=b"HTTP/1.1 201 ")
        peak = peak_mb(service.api)
    shutil.rmtree(folder)
    return seconds, peak


def _sent(port: int, head: bytes, mebibytes: int, *, answer: bytes) -> float:
    """Send all at once, and return the seconds until the last was answered.

    Args:
        port: Where to.
        head: Sent before the bytes; without one, the end of the bytes is told by closing this half of the connection.
        mebibytes: Of each upload.
        answer: How the answer has to begin.
    """

    def send(number: int) -> None:
        own = number.to_bytes(8) + CHUNK[8:]  # contents that exist already would be written once only
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
            connection.sendall(head)
            for _ in range(mebibytes):
                connection.sendall(own)
            if not head:
                connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as answers:
                said = answers.read()
        if not said or not said.startswith(answer):
            raise RuntimeError(f"an upload was answered {said[:300]!r}")

    began = time.monotonic()
    with ThreadPoolExecutor(UPLOADS) as senders:
        list(senders.map(send, range(UPLOADS)))
    return time.monotonic() - began
