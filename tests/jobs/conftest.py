"""The store on each database that it promises to run on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from jobs.database import open_engine
from jobs.settings import Settings
from jobs.store import JobStore


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database."""
    if request.param == "sqlite":
        return Settings(data_dir=tmp_path)
    url: str = request.getfixturevalue("postgresql_url")
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return Settings(data_dir=tmp_path, database_url=url.replace("/postgres", f"/{name}"))


@pytest.fixture
def open_store(settings: Settings) -> Iterator[Callable[..., JobStore]]:
    """Open a store with limits of one's own; several share the database."""
    engine = open_engine(settings)
    yield lambda **limits: JobStore(engine, **limits)
    engine.dispose()


@pytest.fixture
def store(open_store: Callable[..., JobStore]) -> JobStore:
    return open_store()
