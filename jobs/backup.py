"""Copy the embedded service's records and bytes while it goes on. The copy is a data folder like the original."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pysqlite3.dbapi2 as sqlite
from sqlalchemy import URL

from jobs.artifacts import FolderStore, sync_folder
from jobs.database import BUSY_SECONDS, database_url, engine_of
from jobs.errors import BackupError, BlobMissingError
from jobs.settings import Settings
from jobs.store import JobStore

DATABASE = "medic.sqlite3"


def back_up(settings: Settings, destination: Path) -> int:
    """Make ``destination``, whole or not at all; return how many blobs are in it.

    First the database, as it is at one moment, then all bytes that this copy names: nobody collects any in between.

    Raises:
        BackupError: With what is in the way.
        StorageFullError: The disk has no room.
    """
    url = database_url(settings)
    if url.get_backend_name() != "sqlite":
        raise BackupError("only the embedded service: back PostgreSQL up with pg_dump, then copy the folder of blobs")
    database = Path(url.database or "")
    if not database.is_file():
        raise BackupError(f"there is no database at {database}: does MEDIC_DATA_DIR say where the service's data is?")
    blobs = FolderStore(settings.data_dir / "blobs")
    try:
        with _appearing(destination) as folder, blobs.kept():
            _copy_database(database, folder / DATABASE)
            return _copy_blobs(blobs, _named_in(folder / DATABASE), FolderStore(folder / "blobs"))
    except (OSError, sqlite.Error) as error:
        raise BackupError(str(error)) from error


@contextmanager
def _appearing(destination: Path) -> Iterator[Path]:
    """Yield a folder that has its name only once all is in it."""
    if destination.exists():
        raise BackupError(f"{destination} exists already")
    folder = destination.parent / f".{destination.name}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
        sync_folder(folder)
        folder.rename(destination)
        sync_folder(destination.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy_database(source: Path, target: Path) -> None:
    existing = f"file:{quote(str(source))}?mode=rw"
    with (
        closing(sqlite.connect(existing, uri=True, timeout=BUSY_SECONDS)) as original,
        closing(sqlite.connect(target)) as copy,
    ):
        original.backup(copy)  # in one step, so of one moment
        copy.execute("PRAGMA journal_mode = DELETE")  # one file; the service sets its own mode again
        (found,) = copy.execute("PRAGMA integrity_check").fetchone()
    if found != "ok":
        raise BackupError(f"the database is damaged: {found}")


def _named_in(database: Path) -> set[str]:
    engine = engine_of(URL.create("sqlite", database=str(database)))
    try:
        return JobStore(engine).live_digests()
    finally:
        engine.dispose()


def _copy_blobs(source: FolderStore, digests: set[str], target: FolderStore) -> int:
    lost = sorted(digest for digest in digests if not _copied(source, digest, target))
    if lost:
        raise BackupError(f"{len(lost)} blobs are missing or damaged, delete what names them: {', '.join(lost)}")
    return len(digests)


def _copied(source: FolderStore, digest: str, target: FolderStore) -> bool:
    try:
        return target.put_file(source.path(digest)).sha256 == digest
    except BlobMissingError:
        return False
