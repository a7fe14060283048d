"""Honest clients beside 2,000 connections that say nothing and 200 that say it slowly.

Whoever is thrown out comes back at once, so that as many are there all the time.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.load.figures import Measured, Target, p99
from benchmarks.load.service import Service, running, small_spec
from benchmarks.load.traffic import Answers, poll

IDLE = 2000
SLOW = 200
CLIENTS = 50
SECONDS = 60.0
MOST_MS = 500.0
BACK_SECONDS = 1.0
"""How long one that was thrown out or not let in stays away."""


def measure(folder: Path, scale: float) -> Measured:
    """Poll a waiting job without the crowd, then within it."""
    with running(folder / "service") as service, service.client() as client:
        path = f"/v1/jobs/{client.create_job(small_spec(client, folder)).id}"
        _allow_files()  # only now: the API is to have as many as it gets by itself
        seconds = SECONDS * scale
        alone = asyncio.run(poll(service, path, clients=CLIENTS, seconds=seconds))
        crowded, ended = asyncio.run(_crowded(service, path, scale, seconds))
    return Measured(
        (
            Target("p99 within the crowd, ms", p99(crowded.seconds), at_most=MOST_MS),
            Target("answers other than 200 within it", crowded.errors.total(), at_most=0),
        ),
        {
            "idle": round(IDLE * scale),
            "slow": round(SLOW * scale),
            "alone": alone.figures(),
            "crowded": crowded.figures(),
            "thrown_out": dict(ended),
        },
    )


def _allow_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _crowded(service: Service, path: str, scale: float, seconds: float) -> tuple[Answers, Counter[str]]:
    """Half of the slow ones send headers, half a body, a byte a second each."""
    head = f"PUT /v1/files?purpose=model HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.key}\r\n"
    kinds: dict[str, tuple[bytes, float]] = {
        "idle": (b"", IDLE),
        "slow_headers": (b"GET /v1/jobs HTTP/1.1\r\nX-Slow: ", SLOW / 2),
        "slow_body": (f"{head}Content-Length: 1000000\r\n\r\n".encode(), SLOW / 2),
    }
    ended: Counter[str] = Counter()
    crowd = [
        asyncio.create_task(_linger(service.port, first, partial(ended.update, [kind])))
        for kind, (first, count) in kinds.items()
        for _ in range(round(count * scale))
    ]
    await asyncio.sleep(min(10.0, seconds))  # until all are there
    answers = await poll(service, path, clients=CLIENTS, seconds=seconds)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    return answers, ended


async def _linger(port: int, first: bytes, thrown_out: Callable[[], object]) -> None:
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await _be_slow(reader, writer, first)
            finally:
                writer.close()
        thrown_out()
        await asyncio.sleep(BACK_SECONDS)


async def _be_slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
    """Stay until the other side closes or answers; without ``first``, in silence."""
    answered = asyncio.ensure_future(reader.read(1))
    writer.write(first)
    try:
        while not answered.done():
            await asyncio.wait([answered], timeout=1.0)
            if first:
                writer.write(b"a")
    finally:
        answered.cancel()
        await asyncio.gather(answered, return_exceptions=True)
