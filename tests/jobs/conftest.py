"""The store on each database that it promises to run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from benchmarks.servers import empty_database
from jobs.database import database_url, open_engine, postgresql_engine, sqlite_engine
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database."""
    if request.param == "sqlite":
        return Settings(data_dir=tmp_path)
    url: str = request.getfixturevalue("postgresql_url")
    empty_database(url)
    return Settings(data_dir=tmp_path, database_url=SecretStr(url))


@pytest.fixture
def open_store(settings: Settings) -> Iterator[Callable[..., JobStore]]:
    """Open a store with limits of one's own; several share the database."""
    engine = open_engine(settings)
    yield lambda **limits: JobStore(engine, **limits)
    engine.dispose()


@pytest.fixture
def hasty_engine(settings: Settings) -> Iterator[Engine]:
    """An engine that waits for no disk, on a database with our tables."""
    url = database_url(settings)
    engine = postgresql_engine(url) if settings.database_url else sqlite_engine(url, synchronous="OFF")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(open_store: Callable[..., JobStore]) -> JobStore:
    return open_store()
