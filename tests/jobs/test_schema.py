"""The history of the tables, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from jobs.database import open_engine, reading, writing
from jobs.errors import SchemaTooNewError
from jobs.schema import migrate, newest
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tables import VERSION, metadata, version_of
from tests.jobs.samples import mine, spec_for


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    opened = open_engine(settings)
    yield opened
    opened.dispose()


def test_the_migrations_make_the_tables_that_the_store_uses(engine: Engine) -> None:
    assert newest() == VERSION
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []


def test_back_and_forth_loses_no_job(engine: Engine) -> None:
    store = JobStore(engine)
    job = mine(store).create(spec_for(store, metadata={"git_sha": "abc"}))
    with writing(engine) as connection:
        migrate(connection, "0001")
        assert version_of(connection) == "0001"
    with writing(engine) as connection:
        migrate(connection)
        assert version_of(connection) == VERSION
    assert mine(store).get(job.id) == job


def test_what_a_later_version_made_is_left_alone(engine: Engine, settings: Settings) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNewError, match="9999"):
        open_engine(settings)
    with reading(engine) as connection:
        assert version_of(connection) == "9999"


def test_a_database_that_kept_no_version_is_taken_up(engine: Engine, settings: Settings) -> None:
    with writing(engine) as connection:
        migrate(connection, "0001")
        connection.execute(text("DROP TABLE alembic_version"))
    again = open_engine(settings)
    with reading(again) as connection:
        assert version_of(connection) == VERSION
    again.dispose()


def test_a_migration_that_fails_changes_nothing(engine: Engine) -> None:
    def tables() -> set[str]:
        with reading(engine) as connection:
            return set(inspect(connection).get_table_names())

    before = tables()
    with suppress(RuntimeError), writing(engine) as connection:
        migrate(connection, "base")
        raise RuntimeError
    assert tables() == before
