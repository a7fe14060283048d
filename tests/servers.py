"""Real servers for tests: a test that needs one is skipped where it is not installed, and fails where ``CI=true``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import servers
from benchmarks.servers import NotInstalledError, RunningPostgresql, RunningRedis


@contextmanager
def redis_server(port: int | None = None, *, password: str = "") -> Iterator[RunningRedis]:
    """Redis, or no test."""
    need("redis-server")
    with servers.redis_server(port, password=password) as running:
        yield running


@contextmanager
def postgresql_server(*, password: str = "") -> Iterator[RunningPostgresql]:
    """PostgreSQL, or no test."""
    need("initdb")
    with servers.postgresql_server(password=password) as running:
        yield running


def need(name: str) -> None:
    """Find a program, or no test."""
    try:
        servers.program(name)
    except NotInstalledError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{error}, and CI needs it")
        pytest.skip(str(error))
