"""What the databases themselves promise, and how their failures are named."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, select, text

from benchmarks.servers import empty_database, free_port
from benchmarks.stack import wait_for
from jobs import database
from jobs.database import Now, open_engine, reading, writing
from jobs.errors import DatabaseUnavailableError, StorageFullError
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from jobs.tables import jobs
from jobs.tenant import Upload
from tests.jobs.samples import add, mine, spec_for
from tests.servers import postgresql_server

OPEN_AND_ADD = """
import pathlib, sys
from jobs.settings import Settings
from jobs.store import open_store
from jobs.tenant import Upload
url = sys.argv[2] or None
store = open_store(Settings(data_dir=pathlib.Path(sys.argv[1]), database_url=url))
store.of("default").add_file(Upload("0" * 64, 1, "clean", "x"))
"""


def pragma(connection: Connection, name: str) -> object:
    return connection.execute(text(f"PRAGMA {name}")).scalar_one()


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path))
    with reading(engine) as connection:
        version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        assert tuple(map(int, version.split("."))) >= (3, 51, 3)  # older ones can lose commits in WAL mode
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "synchronous") == 2
        assert pragma(connection, "foreign_keys") == 1
        assert pragma(connection, "busy_timeout") >= 30_000  # type: ignore[operator]
    engine.dispose()


def test_the_clock_is_the_databases_in_milliseconds(settings: Settings) -> None:
    engine = open_engine(settings)
    with reading(engine) as connection:
        now = connection.execute(select(Now())).scalar_one()
        assert isinstance(now, int)
        assert abs(now / 1000 - time.time()) < 5
        time.sleep(0.01)
        assert connection.execute(select(Now())).scalar_one() >= now + 10  # it goes on within a transaction
    engine.dispose()


def test_many_processes_may_open_an_empty_database_at_once(settings: Settings) -> None:
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    command = [sys.executable, "-c", OPEN_AND_ADD, str(settings.data_dir), url]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate()[1] for process in running] == [""] * 6
    store = open_store(settings)
    assert len(mine(store).list_files().files) == 6
    store.close()


def test_many_writers_at_once_all_get_their_turn(store: JobStore) -> None:
    spec = spec_for(store)
    with ThreadPoolExecutor(8) as pool:
        made = {future.result().id for future in [pool.submit(mine(store).create, spec) for _ in range(40)]}
    assert {job.id for job in mine(store).list_jobs(limit=100).jobs} == made
    assert len(made) == 40


def test_a_block_that_fails_changes_nothing(settings: Settings) -> None:
    engine = open_engine(settings)
    store = JobStore(engine)
    job = mine(store).create(spec_for(store))
    with suppress(RuntimeError), writing(engine) as connection:
        connection.execute(jobs.delete())
        raise RuntimeError
    assert mine(store).get(job.id) == job
    engine.dispose()


def test_a_locked_sqlite_is_said_after_the_wait_and_can_still_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    store = open_store(Settings(data_dir=tmp_path))
    file = add(store, "clean")
    other = open_engine(Settings(data_dir=tmp_path))
    with writing(other):
        with pytest.raises(DatabaseUnavailableError):
            add(store, "clean")
        assert mine(store).get_file(file.id) == file
    assert len(mine(store).list_files().files) == 1
    add(store, "clean")  # and it goes on
    store.close()
    other.dispose()


def test_a_full_disk_under_sqlite_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path))
    store = JobStore(engine)
    with reading(engine) as connection:
        pages = pragma(connection, "page_count")
        pragma(connection, f"max_page_count = {pages}")  # of this connection, which the pool hands out next
    with pytest.raises(StorageFullError):
        mine(store).add_file(Upload("0" * 64, 1, "clean", "x" * 100_000))
    assert mine(store).list_files().files == ()
    add(store, "clean")  # what is small still fits
    store.close()


def test_a_postgresql_that_is_not_there_is_said() -> None:
    with pytest.raises(DatabaseUnavailableError):
        open_store(Settings(database_url=SecretStr(f"postgresql://medic@127.0.0.1:{free_port()}/medic")))


def test_a_restarted_postgresql_is_used_again(tmp_path: Path) -> None:
    with postgresql_server() as server:
        url = server.url
        store = open_store(Settings(data_dir=tmp_path, database_url=SecretStr(url)))
        file = add(store, "clean")
        with psycopg.connect(url, autocommit=True) as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(others)
        assert mine(store).get_file(file.id) == file
    with pytest.raises(DatabaseUnavailableError):
        mine(store).get_file(file.id)
    store.close()


def test_a_start_waits_for_another_that_changes_the_tables_however_long(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    settings = Settings(data_dir=tmp_path, database_url=SecretStr(empty_database(postgresql_url)))
    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgresql_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [database.CHANGING_TABLES])
        starting = pool.submit(open_engine, settings)
        with pytest.raises(TimeoutError):
            starting.result(timeout=1)
        other.rollback()
        engine = starting.result(timeout=30)
    with reading(engine) as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "200ms"
    engine.dispose()


def test_a_postgresql_that_takes_no_writes_for_a_while_is_unavailable(postgresql_url: str, tmp_path: Path) -> None:
    store = open_store(Settings(data_dir=tmp_path, database_url=SecretStr(empty_database(postgresql_url))))
    file = add(store, "clean")
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        try:
            wait_for(lambda: _refused(store), 10)
            assert mine(store).get_file(file.id) == file
        finally:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
    wait_for(lambda: not _refused(store), 10)
    store.close()


def _refused(store: JobStore) -> bool:
    try:
        add(store, "clean")
    except DatabaseUnavailableError:
        return True
    return False


def test_waiting_for_a_connection_in_vain_is_said(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x", pool_size=1, max_overflow=0, pool_timeout=0.01)
    with reading(engine), pytest.raises(DatabaseUnavailableError), reading(engine):
        pass
    engine.dispose()


@pytest.mark.parametrize("by", [database.reading, database.writing])
def test_mistakes_of_our_own_keep_their_name(settings: Settings, by: Callable[..., object]) -> None:
    engine = open_engine(settings)
    with pytest.raises(ZeroDivisionError), by(engine):  # type: ignore[attr-defined]
        raise ZeroDivisionError
    engine.dispose()
