"""A backup is of one moment, whole and sound, or it is not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs import backup
from jobs.artifacts import FolderStore
from jobs.backup import back_up
from jobs.errors import BackupError
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from tests.jobs.samples import SUCCESS, add, claimed, digest, mine, spec_for


class House:
    """An embedded service's folder with a job that has succeeded."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder / "data")
        self.store, self.blobs = open_store(self.settings), FolderStore(folder / "data" / "blobs")
        for content in ("model", "clean", "report.json", "model.safetensors"):
            self.blobs.put_bytes(content.encode())
        self.job = mine(self.store).create(spec_for(self.store))
        assert self.store.finish(claimed(self.store, self.job.id), SUCCESS)

    def age_blobs(self) -> None:
        for path in (self.settings.data_dir / "blobs").glob("*/*"):
            os.utime(path, (0, 0))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def opened(folder: Path) -> tuple[JobStore, FolderStore]:
    return open_store(Settings(data_dir=folder)), FolderStore(folder / "blobs")


def test_a_backup_is_a_data_folder_with_all_that_its_records_name(house: House, tmp_path: Path) -> None:
    house.blobs.put_bytes(b"nobody names this")
    assert back_up(house.settings, tmp_path / "copy") == 4
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"medic.sqlite3", "blobs"}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    store, blobs = opened(tmp_path / "copy")
    assert mine(store).get(house.job.id) == mine(house.store).get(house.job.id)
    for name in store.live_digests():
        assert blobs.path(name).read_bytes() == house.blobs.path(name).read_bytes()
    store.close()


def test_what_is_deleted_while_bytes_are_copied_is_in_the_copy_and_collected_later(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.age_blobs()
    copy_database = backup._copy_database

    def then_delete(source: Path, target: Path) -> None:
        copy_database(source, target)
        mine(house.store).delete(house.job.id)
        assert house.blobs.collect(house.store.live_digests, older_than_seconds=3600) == 0

    monkeypatch.setattr(backup, "_copy_database", then_delete)
    assert back_up(house.settings, tmp_path / "copy") == 4
    assert (tmp_path / "copy" / "blobs" / digest("report.json")[:2] / digest("report.json")).is_file()
    assert house.blobs.collect(house.store.live_digests, older_than_seconds=3600) == 2


def test_backups_among_uploads_name_nothing_that_they_lack(house: House, tmp_path: Path) -> None:
    over = threading.Event()

    def upload() -> None:
        number = 0
        while not over.is_set():
            house.blobs.put_bytes(f"upload {number}".encode())
            add(house.store, "clean", f"upload {number}")
            number += 1

    uploading = threading.Thread(target=upload)
    uploading.start()
    counts = [back_up(house.settings, tmp_path / str(number)) for number in range(5)]
    over.set()
    uploading.join()
    for number, count in enumerate(counts):
        store, blobs = opened(tmp_path / str(number))
        assert len([blobs.path(name) for name in store.live_digests()]) == count
        store.close()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_bytes_that_are_not_what_they_were_are_named_and_no_backup_is_made(
    house: House, tmp_path: Path, damage: str
) -> None:
    path = house.blobs.path(digest("report.json"))
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"something else")
    with pytest.raises(BackupError, match=digest("report.json")):
        back_up(house.settings, tmp_path / "copy")
    assert {each.name for each in tmp_path.iterdir()} == {"data"}


def test_a_damaged_database_is_no_backup(house: House, tmp_path: Path) -> None:
    house.store.close()
    database = house.settings.data_dir / "medic.sqlite3"
    database.write_bytes(database.read_bytes()[:4096] + b"x" * 8192)
    with pytest.raises(BackupError):
        back_up(house.settings, tmp_path / "copy")
    assert {each.name for each in tmp_path.iterdir()} == {"data"}


def test_nothing_is_written_over(house: House, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(BackupError, match="exists already"):
        back_up(house.settings, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_folder_without_a_service_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="MEDIC_DATA_DIR"):
        back_up(Settings(data_dir=tmp_path / "elsewhere"), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_postgresql_has_its_own_way(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=SecretStr("postgresql://medic:hush@127.0.0.1:1/medic"))
    with pytest.raises(BackupError, match="pg_dump") as refused:
        back_up(settings, tmp_path / "copy")
    assert "hush" not in str(refused.value)
