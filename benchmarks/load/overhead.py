"""What it costs to follow a job, beside a route of the same application that does nothing.

The route that does nothing asks for no key: who holds it up to the cost of polling wants to know what polling costs in
all, and looking up the caller's key in the database is part of that. What a key costs is measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import psutil

from benchmarks.load.figures import Measured, Target, spread
from benchmarks.load.nothing import NOTHING, NOTHING_FOR_CALLERS
from benchmarks.load.service import running, small_spec

REQUESTS = 5000
WARM_UP = 100
MOST_TIMES = 3.0
API_WITH_NOTHING = ("-m", "benchmarks.load.nothing")


def measure(folder: Path, scale: float) -> Measured:
    """Ask one after the other for nothing, for nothing with a key, and for a job, over one connection."""
    with running(folder / "service", api=API_WITH_NOTHING) as service, service.client() as client:
        job = client.create_job(small_spec(client, folder))
        paths = {"nothing": NOTHING, "nothing_for_callers": NOTHING_FOR_CALLERS, "job": f"/v1/jobs/{job.id}"}
        connection = HTTPConnection("127.0.0.1", service.port)
        took: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(WARM_UP + round(REQUESTS * scale)):
            for name, path in paths.items():
                took[name].append(_asked(connection, path, service.headers))
        took = {name: seconds[WARM_UP:] for name, seconds in took.items()}
        cpu = {name: _cpu_ms(service.api, connection, path, service.headers, scale) for name, path in paths.items()}
        connection.close()
    return Measured(
        (Target("a poll over nothing, medians", median(took["job"]) / median(took["nothing"]), at_most=MOST_TIMES),),
        {name: {**spread(seconds), "cpu_ms": round(cpu[name], 3)} for name, seconds in took.items()},
    )


def _asked(connection: HTTPConnection, path: str, headers: Mapping[str, str]) -> float:
    began = time.perf_counter()
    connection.request("GET", path, headers=dict(headers))
    answer = connection.getresponse()
    answer.read()
    seconds = time.perf_counter() - began
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return seconds


def _cpu_ms(
    api: psutil.Process, connection: HTTPConnection, path: str, headers: Mapping[str, str], scale: float
) -> float:
    """CPU time of the API for one request."""
    requests = round(REQUESTS * scale)
    before = sum(api.cpu_times()[:2])
    for _ in range(requests):
        _asked(connection, path, headers)
    return 1000 * (sum(api.cpu_times()[:2]) - before) / requests
