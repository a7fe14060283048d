"""Memory of the API and of a worker while clients poll, post, upload and download for minutes.

A slope is fitted to means over a tenth of the time each, since neighbouring samples are nearly the same sample; its
error is that of such a fit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

import httpx
import psutil

from benchmarks.load.figures import Measured, Target
from benchmarks.load.service import STAND_IN_POLLING, Service, running, small_spec
from benchmarks.load.stand_in import ARTIFACT
from jobs.models import Job, JobSpec

MINUTES = 10.0
WARM_UP_MINUTES = 3.0
MOST_MB_PER_HOUR = 6.0
"""A MB in ten minutes; a leak of a KB a request would be ten times as much."""

POLLS, POSTS = 20, 1
"""In a second; for each job that is posted a file is uploaded, and an artifact of an earlier one downloaded."""

MEANS = 10


def measure(folder: Path, scale: float, minutes: float = MINUTES) -> Measured:
    """Warm up, then sample once a second."""
    with running(folder / "service", STAND_IN_POLLING) as service:
        with service.client() as client:
            spec = small_spec(client, folder)
        samples = asyncio.run(_used(service, spec, 60 * scale * WARM_UP_MINUTES, 60 * scale * minutes))
    slopes = {name: growth([mb[name] for mb in samples], 60 * scale * minutes) for name in ("api", "worker")}
    return Measured(
        [
            Target(f"growth of the {name}, MB an hour, less two errors", slope - 2 * error, at_most=MOST_MB_PER_HOUR)
            for name, (slope, error) in slopes.items()
        ],
        {
            "minutes": minutes * scale,
            **{f"{name}_mb_per_hour": [round(slope, 2), round(error, 2)] for name, (slope, error) in slopes.items()},
            **{f"{name}_mb": [round(samples[index][name], 1) for index in (0, -1)] for name in slopes},
        },
    )


def growth(mb: Sequence[float], seconds: float) -> tuple[float, float]:
    """Fit a line to evenly spaced samples: its slope per hour, and the standard error of that."""
    size = len(mb) // MEANS
    means = [mean(mb[start : start + size]) for start in range(0, size * MEANS, size)]
    hours = [(number + 0.5) * seconds / 3600 / MEANS for number in range(MEANS)]
    slope, base = linear_regression(hours, means)
    rest = sum((value - base - slope * hour) ** 2 for hour, value in zip(hours, means, strict=True))
    width = sum((hour - mean(hours)) ** 2 for hour in hours)
    return slope, math.sqrt(rest / (MEANS - 2) / width)


async def _used(service: Service, spec: JobSpec, warm_up: float, seconds: float) -> list[Mapping[str, float]]:
    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=60) as http:
        used = asyncio.create_task(_use(http, spec))
        await asyncio.sleep(warm_up)
        samples: list[Mapping[str, float]] = []
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            samples.append({"api": _mb(service.api), "worker": _mb(service.workers[0])})
            await asyncio.sleep(min(1.0, seconds / (10 * MEANS)))
            if used.done():
                break
        used.cancel()
        await asyncio.gather(used, return_exceptions=True)
    if not used.cancelled():
        used.result()
    return samples


async def _use(http: httpx.AsyncClient, spec: JobSpec) -> None:
    """Do all that a client does, until cancelled; anything but success is an error."""
    content = spec.model_dump_json()
    earlier = Job.model_validate_json(await _done(http.post("/v1/jobs", content=content)))
    while True:
        await _done(http.put("/v1/files", params={"purpose": "model"}, content=content))
        job = Job.model_validate_json(await _done(http.post("/v1/jobs", content=content)))
        for _ in range(POLLS // POSTS):
            await _done(http.get(f"/v1/jobs/{job.id}"))
            await asyncio.sleep(1 / POLLS)
        if Job.model_validate_json(await _done(http.get(f"/v1/jobs/{earlier.id}"))).terminal:
            await _done(http.get(f"/v1/jobs/{earlier.id}/artifacts/{ARTIFACT}"))
            earlier = job


async def _done(request: Any) -> bytes:
    answer: httpx.Response = await request
    return answer.raise_for_status().content


def _mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)
