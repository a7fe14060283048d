"""Engines for SQLite and PostgreSQL that behave alike: their clock, their transactions, their failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pysqlite3.dbapi2 as sqlite
from sqlalchemy import URL, BigInteger, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from jobs.errors import DatabaseUnavailableError, JobsError, StorageFullError
from jobs.settings import Settings
from jobs.tables import VERSION, version_of

BUSY_SECONDS = 30
CHANGING_TABLES = 0x6D656469  # any number that all our processes agree on
SAFE_WAL = (3, 51, 3)  # older ones can lose commits in WAL mode


class Now(FunctionElement[int]):
    """The database's clock in milliseconds since the epoch, read when a row is looked at, not when the wait began."""

    type = BigInteger()
    inherit_cache = True


@compiles(Now, "sqlite")
def _now_on_sqlite(_element: Now, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(unixepoch('subsec') * 1000 AS INTEGER)"


@compiles(Now, "postgresql")
def _now_on_postgresql(_element: Now, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"


def open_engine(settings: Settings) -> Engine:
    """Open the database that the settings name, and bring its tables to the version of this program.

    Raises:
        DatabaseUnavailableError: It did not answer in time.
        SchemaTooNewError: A later version of this program made it.
    """
    if settings.database_url is None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = engine_of(database_url(settings))
    try:
        with writing(engine) as connection:
            _update_tables(connection)
    except JobsError:
        engine.dispose()
        raise
    return engine


def _update_tables(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # a large table takes its time, and so do those who wait for another
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CHANGING_TABLES})
    if version_of(connection) != VERSION:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every part of itself
        from jobs.schema import migrate  # only where there is something to do: it takes longer than the rest

        migrate(connection)


def database_url(settings: Settings) -> URL:
    """Say where the database is."""
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.data_dir / "medic.sqlite3"))
    return make_url(settings.database_url.get_secret_value())


def engine_of(url: URL) -> Engine:
    """Make an engine; it connects when it is used, and changes no table."""
    return sqlite_engine(url) if url.get_backend_name() == "sqlite" else postgresql_engine(url)


def sqlite_engine(url: URL, *, synchronous: str = "FULL") -> Engine:
    """Open a SQLite file through a SQLite that is newer than the interpreter's own."""
    engine = create_engine(url, module=sqlite, connect_args={"timeout": BUSY_SECONDS}, pool_size=20, max_overflow=20)
    journal_mode = "WAL" if sqlite.sqlite_version_info >= SAFE_WAL else "DELETE"

    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        _set_journal_mode(connection, journal_mode)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine


def _set_journal_mode(connection: Any, mode: str) -> None:
    """Set the mode of the file. While others open a new file too, SQLite is busy here without waiting by itself."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode = {mode}")
        except sqlite.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def postgresql_engine(url: URL) -> Engine:
    """Open PostgreSQL; only changes of the tables may wait for ever, and a connection that died idle is replaced."""
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": 5, "options": f"-c statement_timeout={BUSY_SECONDS}s"},
        pool_pre_ping=True,
        pool_size=20,
        max_overflow=20,
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads.

    Raises:
        DatabaseUnavailableError: The database did not answer in time.
    """
    with _failures_named(), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes, committed when the block ends well. On SQLite there is one at a time.

    Raises:
        DatabaseUnavailableError: The database did not answer in time; nothing was changed.
        StorageFullError: Its disk has no room; nothing was changed.
    """
    with _failures_named(), engine.execution_options(writes=True).begin() as connection:
        yield connection


@contextmanager
def _failures_named() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError("too many wait for the database") from error
    except (OperationalError, InterfaceError) as error:
        if "SQLITE_FULL" in _codes(error) or "53100" in _codes(error):
            raise StorageFullError("no room left on the database's disk; nothing was changed") from error
        raise DatabaseUnavailableError("the database does not answer; nothing was changed") from error
    except InternalError as error:
        if "25006" not in _codes(error):
            raise
        raise DatabaseUnavailableError("the database takes no writes at present; nothing was changed") from error


def _codes(error: DBAPIError) -> tuple[str | None, str | None]:
    """The name of SQLite's error and PostgreSQL's SQLSTATE."""
    return getattr(error.orig, "sqlite_errorname", None), getattr(error.orig, "sqlstate", None)
