"""How long honest requests take beside connections that do nothing, and others that do it slowly.

``python -m benchmarks.connections`` fails when the 99th percentile passes 500 ms or an honest request fails.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx
import psutil

from benchmarks.machine import write_json
from jobs.artifacts import open_artifacts
from jobs.claims import Succeeded
from jobs.keys import new_key
from jobs.models import Artifact, Comparison, Summary
from jobs.settings import Settings
from jobs.store import open_store

RESULT = Path(__file__).parent / "results" / "connections.json"
LIMIT_MS = 500
HONEST_CLIENTS = 4
PAUSE_SECONDS = 0.1
SPREAD_SECONDS = 10  # those who hold connections know nothing of each other
BODY = bytes(64 * 1024)


@dataclass(frozen=True)
class Measurement:
    """Of honest requests: half are uploads of 64 KiB, a quarter comes over a connection of its own."""

    command: str
    idle: int
    slow: int
    requests: int
    failures: int
    median_ms: float
    p99_ms: float
    longest_ms: float
    limit_ms: int
    most_descriptors: int
    most_connections: int
    peak_rss_mb: float
    load_of_machine: float
    cpus: int | None


@click.command()
@click.option("--idle", default=2000, show_default=True, help="Connections that send nothing.")
@click.option(
    "--slow", default=200, show_default=True, help="Heads and bodies that trickle, answers that nobody takes."
)
@click.option("--seconds", default=90, show_default=True)
def main(idle: int, slow: int, seconds: int) -> None:
    """Measure, print, keep the figures in benchmarks/results, and fail above the limit."""
    measured = measure(idle, slow, seconds)
    write_json(RESULT, asdict(measured))
    click.echo(
        f"{measured.requests} honest requests beside {idle} idle and {slow} slow connections: median "
        f"{measured.median_ms} ms, p99 {measured.p99_ms} ms, {measured.failures} failed; "
        f"at most {measured.most_descriptors} descriptors, {measured.peak_rss_mb} MB"
    )
    if measured.p99_ms > LIMIT_MS or measured.failures:
        sys.exit(1)


def measure(idle: int, slow: int, seconds: float) -> Measurement:
    """Ask for so long beside connections that are made anew whenever the server ends one."""
    key = new_key()
    durations: list[float] = []
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="medic-connections-") as folder,
        _serving(Path(folder), key) as (server, url),
        _held(url, key, _make_artifact(Path(folder), url, key), idle, slow),
    ):
        end = time.monotonic() + seconds
        arguments = (url, key, end, durations, failures)
        clients = [threading.Thread(target=_ask, args=arguments) for _ in range(HONEST_CLIENTS)]
        for client in clients:
            client.start()
        samples = list(_samples(server, end))
        for client in clients:
            client.join()
    for failure in sorted(set(failures)):
        click.echo(failure, err=True)
    descriptors, connections, memory = (max(values) for values in zip(*samples, strict=True))
    return Measurement(
        command=f"python -m benchmarks.connections --idle {idle} --slow {slow} --seconds {seconds:g}",
        idle=idle,
        slow=slow,
        requests=len(durations),
        failures=len(failures),
        median_ms=round(statistics.median(durations) * 1000, 1),
        p99_ms=round(statistics.quantiles(durations, n=100)[98] * 1000, 1),
        longest_ms=round(max(durations) * 1000, 1),
        limit_ms=LIMIT_MS,
        most_descriptors=descriptors,
        most_connections=connections,
        peak_rss_mb=round(memory / 1e6, 1),
        load_of_machine=round(os.getloadavg()[0], 1),
        cpus=os.cpu_count(),
    )


def _samples(server: psutil.Process, end: float) -> Iterator[tuple[int, int, int]]:
    while time.monotonic() < end:
        yield server.num_fds(), len(server.net_connections("tcp")), server.memory_info().rss
        time.sleep(1)


@contextmanager
def _serving(folder: Path, key: str) -> Iterator[tuple[psutil.Process, str]]:
    environment = {**os.environ, "MEDIC_DATA_DIR": str(folder), "MEDIC_PORT": "0", "MEDIC_API_KEY": key}
    log, command = folder / "log", [sys.executable, "-m", "api"]
    with log.open("w") as stderr, subprocess.Popen(command, env=environment, stderr=stderr) as server:  # noqa: S603  ourselves
        try:
            while (listening := re.search(r"listening on (\S+)\n", log.read_text())) is None:
                if server.poll() is not None:
                    raise click.ClickException(f"the API does not start: {log.read_text()}")
                time.sleep(0.1)
            yield psutil.Process(server.pid), listening[1]
        finally:
            server.kill()


def _ask(url: str, key: str, end: float, durations: list[float], failures: list[str]) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        number = 0
        while time.monotonic() < end:
            number += 1
            began = time.monotonic()
            try:
                headers = {"Connection": "close"} if number % 4 == 0 else {}
                if number % 2:
                    answer = client.put("/v1/files", params={"purpose": "clean"}, content=BODY, headers=headers)
                else:
                    answer = client.get("/v1/jobs", headers=headers)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                failures.append(str(error))
            durations.append(time.monotonic() - began)
            time.sleep(PAUSE_SECONDS)


def _make_artifact(folder: Path, url: str, key: str) -> str:
    """Let a job succeed, and return the path of what it has made: more than the buffers of a connection take."""
    settings = Settings(data_dir=folder)
    jobs, blob = open_store(settings), open_artifacts(settings).put_bytes(bytes(32 * 1024**2))
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
        files = {"model": ("m", b"m"), "clean": ("c", b"c")}
        spec = json.dumps({"model": {"architecture": "medic/resnet8"}})
        job = client.post("/v1/sanitize", data={"spec": spec}, files=files).raise_for_status().json()["id"]
    claim = jobs.claim(job)
    if claim is None:
        raise click.ClickException("the job is somebody else's")
    accuracy = Comparison(before=1, after=1, n=1, interval_before=(0, 1), interval_after=(0, 1))
    made = Artifact(name="weights", sha256=blob.sha256, bytes=blob.size, media_type="application/octet-stream")
    jobs.finish(claim, Succeeded(summary=Summary(clean_accuracy=accuracy), artifacts=(made,)))
    jobs.close()
    return f"/v1/jobs/{job}/artifacts/weights"


@contextmanager
def _held(url: str, key: str, artifact: str, idle: int, slow: int) -> Iterator[None]:
    holder = multiprocessing.Process(target=_hold, args=(url, key, artifact, idle, slow), daemon=True)
    holder.start()
    time.sleep(SPREAD_SECONDS)
    try:
        yield
    finally:
        holder.kill()
        holder.join()


def _hold(url: str, key: str, artifact: str, idle: int, slow: int) -> None:
    asyncio.run(_hold_all(url, key, artifact, idle, slow))


async def _hold_all(url: str, key: str, artifact: str, idle: int, slow: int) -> None:
    upload = f"PUT /v1/files?purpose=model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    download = f"GET {artifact} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    kinds = [b"GET /", f"{upload}Content-Length: 1000000000\r\n\r\n".encode(), download.encode()]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(idle):
            tasks.create_task(_hold_one(url, b"", b""))
        for number in range(slow):
            tasks.create_task(_hold_one(url, kinds[number % 3], b"a" if number % 3 < 2 else b""))


async def _hold_one(url: str, start: bytes, more: bytes) -> None:
    await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))  # noqa: S311  no secret
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    while True:
        with suppress(ConnectionError), socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, (address.hostname, address.port))
            await loop.sock_sendall(connection, start)
            await _wait_for_its_end(connection, more)
        await asyncio.sleep(1)


async def _wait_for_its_end(connection: socket.socket, more: bytes) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(1)
        if more:
            await loop.sock_sendall(connection, more)
        with suppress(BlockingIOError):
            if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return


if __name__ == "__main__":
    main()
