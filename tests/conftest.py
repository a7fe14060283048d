"""What tests of several rooms share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from benchmarks.servers import RunningRedis
from tests.servers import postgresql_server, redis_server

# the shell of someone who uses a service names it, its key and its database, which are no place for tests
for _name in [name for name in os.environ if name.startswith("MEDIC_") and not name.startswith("MEDIC_TEST_")]:
    del os.environ[_name]

# a shell starts what runs in the background with SIGINT ignored, and the services that tests interrupt would inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def running_redis() -> Iterator[RunningRedis]:
    """A Redis of one's own, to be stopped and killed at will."""
    with redis_server() as running:
        yield running


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a PostgreSQL that each test empties before it begins."""
    with postgresql_server() as running:
        yield running.url
