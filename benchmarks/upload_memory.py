"""How much memory the API needs while it takes a large upload, and how fast that is.

``python -m benchmarks.upload_memory [--gib 2]`` fails when the API's resident memory passes 150 MB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import httpx
import psutil

from benchmarks.machine import describe_machine, without_settings, write_json
from jobs.keys import new_key

RESULT = Path(__file__).parent / "results" / "upload_memory.json"
LIMIT_MB = 150
CHUNK = os.urandom(1024**2)
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Measurement:
    """MB are millions of bytes."""

    command: str
    uploaded_bytes: int
    seconds: float
    mb_per_second: float
    idle_rss_mb: float
    peak_rss_mb: float
    limit_mb: int
    samples: int
    machine: Mapping[str, str | int | None]


@click.command()
@click.option("--gib", type=click.FloatRange(min=0.001), default=2.0, show_default=True, help="Size of the upload.")
def main(gib: float) -> None:
    """Measure, print, keep the figures in benchmarks/results, and fail above the limit."""
    measured = measure(round(gib * 1024) or 1)
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, asdict(measured))
    click.echo(
        f"peak resident memory {measured.peak_rss_mb:.1f} MB (idle {measured.idle_rss_mb:.1f}, limit {LIMIT_MB}), "
        f"{measured.mb_per_second:.0f} MB/s over {measured.uploaded_bytes} bytes"
    )
    if measured.peak_rss_mb > LIMIT_MB:
        sys.exit(1)


def measure(mebibytes: int) -> Measurement:
    """Upload so many MiB to an API of its own."""
    key = new_key()
    with _serving(key, limit_bytes=mebibytes * len(CHUNK)) as (process, url):
        idle = process.memory_info().rss
        with _sampled(process) as samples:
            began = time.monotonic()
            _upload(url, key, mebibytes)
            seconds = time.monotonic() - began
    size = mebibytes * len(CHUNK)
    return Measurement(
        command=f"python -m benchmarks.upload_memory --gib {mebibytes / 1024:g}",
        uploaded_bytes=size,
        seconds=round(seconds, 2),
        mb_per_second=round(size / 1e6 / seconds, 1),
        idle_rss_mb=round(idle / 1e6, 1),
        peak_rss_mb=round(max(samples) / 1e6, 1),
        limit_mb=LIMIT_MB,
        samples=len(samples),
        machine=describe_machine(),
    )


@contextmanager
def _serving(key: str, *, limit_bytes: int) -> Iterator[tuple[psutil.Process, str]]:
    with tempfile.TemporaryDirectory(prefix="medic-upload-") as folder:
        settings = {"MEDIC_DATA_DIR": folder, "MEDIC_PORT": "0", "MEDIC_API_KEY": key}
        environment = {**without_settings(), **settings, "MEDIC_UPLOAD_LIMIT_BYTES": str(limit_bytes)}
        command = [sys.executable, "-m", "api"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603  ourselves
            try:
                line = server.stderr.readline() if server.stderr else ""
                if (listening := re.search(r"listening on (\S+)$", line)) is None:
                    raise click.ClickException(f"the API does not start: {line}")
                yield psutil.Process(server.pid), listening[1]
            finally:
                server.terminate()


@contextmanager
def _sampled(process: psutil.Process) -> Iterator[list[int]]:
    samples = [process.memory_info().rss]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        done.set()
        sampler.join()


def _upload(url: str, key: str, mebibytes: int) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Length": str(mebibytes * len(CHUNK))}
    answer = httpx.put(
        f"{url}/v1/files",
        params={"purpose": "model", "filename": "generated.bin"},
        content=(CHUNK for _ in range(mebibytes)),
        headers=headers,
        timeout=None,  # noqa: S113  the disk may be slow; that is what is measured
    )
    answer.raise_for_status()


if __name__ == "__main__":
    main()
