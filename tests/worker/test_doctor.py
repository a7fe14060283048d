"""The doctor finds what does not work, one thing after the other, and changes nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.servers import RunningRedis, empty_database
from jobs.database import open_engine, writing
from jobs.keys import new_key
from jobs.models import Check
from jobs.settings import Settings
from jobs.store import open_store
from worker.doctor import examine

QUICK = ("python", "sqlite", "settings", "api key", "data folder", "database", "retention", "broker")
"""What is looked at before PyTorch is loaded."""


def quickly(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: str) -> dict[str, Check]:
    monkeypatch.setenv("MEDIC_DATA_DIR", str(folder))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return {check.name: check for check in islice(examine(), len(QUICK))}


def test_a_machine_on_which_nothing_has_run_yet_is_sound_and_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = quickly(monkeypatch, tmp_path / "data")
    assert tuple(checks) == QUICK
    assert {name for name, check in checks.items() if check.state != "ok"} == {"data folder", "database"}
    assert {check.state for check in checks.values()} == {"ok", "note"}
    assert list(tmp_path.iterdir()) == []
    assert quickly(monkeypatch, tmp_path)["data folder"].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_there_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_store(Settings(data_dir=tmp_path)).close()
    assert {check.state for check in quickly(monkeypatch, tmp_path).values()} == {"ok"}


def test_postgresql_and_redis_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgresql_url: str, running_redis: RunningRedis
) -> None:
    urls = {"MEDIC_DATABASE_URL": empty_database(postgresql_url), "MEDIC_BROKER_URL": running_redis.url}
    assert {check.state for check in quickly(monkeypatch, tmp_path, **urls).values()} == {"ok"}


def test_what_does_not_answer_is_broken_without_a_word_of_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    checks = quickly(
        monkeypatch,
        tmp_path / "file",
        MEDIC_DATABASE_URL="postgresql://medic:hush@127.0.0.1:1/medic",
        MEDIC_BROKER_URL="redis://:hush@127.0.0.1:1/0",
    )
    broken = {name for name, check in checks.items() if check.state == "broken"}
    assert broken == {"data folder", "database", "broker"}
    assert not any("hush" in check.detail for check in checks.values())


def test_a_sqlite_file_that_is_none_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "medic.sqlite3").write_bytes(b"x" * 4096)
    assert quickly(monkeypatch, tmp_path)["database"].state == "broken"


def test_scarce_room_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = quickly(monkeypatch, tmp_path, MEDIC_UPLOAD_LIMIT_BYTES=str(2**62))["data folder"]
    assert (folder.state, "less than one upload" in folder.detail) == ("note", True)


def test_malformed_settings_are_named_without_their_values_and_end_the_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = quickly(monkeypatch, tmp_path, MEDIC_DATABASE_URL="mysql://medic:hush@h/d", MEDIC_SANDBOX="off")
    assert tuple(checks) == QUICK[:3]
    assert checks["settings"].state == "broken"
    assert "MEDIC_DATABASE_URL: " in checks["settings"].detail
    assert "MEDIC_SANDBOX: " in checks["settings"].detail
    assert "hush" not in checks["settings"].detail


def test_what_would_stop_the_service_at_its_start_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path))
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    checks = quickly(monkeypatch, tmp_path, MEDIC_API_KEY="hush")
    assert {name for name, check in checks.items() if check.state == "broken"} == {"api key", "database"}
    assert "9999" in checks["database"].detail
    assert "hush" not in checks["api key"].detail
    assert quickly(monkeypatch, tmp_path, MEDIC_API_KEY=new_key())["api key"].state == "ok"
