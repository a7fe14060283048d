"""Bytes named by their SHA-256, written once, durable on return."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from jobs.errors import ArtifactTooLargeError, BlobMissingError, StorageFullError
from jobs.settings import Settings

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CHUNK_BYTES = 1024**2


@dataclass(frozen=True)
class Blob:
    """Stored bytes: their digest and how many there are."""

    sha256: str
    size: int


class BlobWriter(Protocol):
    """Takes bytes until ``commit``; without it they leave no trace."""

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            ArtifactTooLargeError: The limit is passed.
            StorageFullError: The disk has no room.
        """

    def sha256(self) -> str:
        """Say what the bytes so far hash to."""

    def commit(self) -> Blob:
        """Make the bytes durable and visible under their digest. Call it once, last.

        Raises:
            StorageFullError: The disk has no room.
        """


class ArtifactStore(Protocol):
    """Where uploads, checkpoints and results lie. A blob is never changed; one that no record names is collected."""

    def writer(self, limit_bytes: int | None = None) -> AbstractContextManager[BlobWriter]:
        """Open a new blob for writing."""

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes."""

    def path(self, sha256: str) -> Path:
        """Say where a blob can be read.

        Raises:
            BlobMissingError: There is none of that digest.
        """

    def let_go(self, sha256: str) -> None:
        """Let a blob be collected however young it is, unless a record names it or it is put again."""

    def collect(self, live: Callable[[], set[str]], *, older_than_seconds: float) -> int:
        """Remove what is older and not named by ``live()``; return how many blobs and stale temporary files that were.

        ``live`` is asked after the ages were looked at, and a blob that is put again counts as new: bytes that were
        just written and that no record names yet are safe.
        """


class FolderStore:
    """An artifact store in a folder: ``root/ab/abcdef…``, and ``root/tmp`` for what is being written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._lock = root / "lock"
        with _no_room_said():
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._lock.touch()

    @contextmanager
    def writer(self, limit_bytes: int | None = None) -> Iterator[BlobWriter]:
        """Open a new blob for writing."""
        temporary = self._temporary / secrets.token_hex(16)
        try:
            with _no_room_said():
                file = FileIO(temporary, "xb")
            with file:
                yield _FolderWriter(self, file, temporary, limit_bytes)
        finally:
            temporary.unlink(missing_ok=True)

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file."""
        with path.open("rb") as source, self.writer() as writer:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def path(self, sha256: str) -> Path:
        """Say where a blob lies.

        Raises:
            BlobMissingError: There is none of that digest.
        """
        if re.fullmatch("[0-9a-f]{64}", sha256) and (path := self._place(sha256)).is_file():
            return path
        raise BlobMissingError(f"the bytes of {sha256} are not in the store")

    def let_go(self, sha256: str) -> None:
        """Let a blob be collected however young it is, unless a record names it or it is put again."""
        with suppress(OSError):  # it then goes when it is old
            os.utime(self._place(sha256), (0, 0))

    def collect(self, live: Callable[[], set[str]], *, older_than_seconds: float) -> int:
        """Remove blobs that no record names, and temporary files of dead writers, when older.

        A blob that is put again between the look at its age and its removal is seen: its age is looked at once more
        under the lock that ``commit`` shares. Where someone has the lock, the blob waits for the next time.
        """

        def is_old(path: Path) -> bool:
            return path.stat().st_mtime < time.time() - older_than_seconds

        old = [path for path in self._root.glob("*/*") if _unless_gone(is_old, path)]
        named = live() if old else set()
        unnamed = [path for path in old if path.name not in named]
        return sum(_unless_gone(self._remove_if(is_old), path) for path in unnamed)

    def _remove_if(self, is_old: Callable[[Path], bool]) -> Callable[[Path], bool]:
        def remove(path: Path) -> bool:
            try:
                with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                    if not is_old(path):
                        return False
                    path.unlink()
                    return True
            except BlockingIOError:
                return False

        return remove

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let nobody collect anything, in any process, while the block lasts."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def _publish(self, temporary: Path, sha256: str) -> None:
        place = self._place(sha256)
        with suppress(FileExistsError):
            place.parent.mkdir()
            sync_folder(self._root)
        with self._locked(fcntl.LOCK_SH):
            os.utime(temporary)  # from now on the blob counts as new
            if place.exists() and filecmp.cmp(place, temporary, shallow=False):  # else damaged since it was written
                os.utime(place)  # it stays: a sandbox lets its process read this file, not another in its place
            else:
                temporary.replace(place)
        sync_folder(place.parent)

    def _place(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        with self._lock.open("rb") as lock:
            fcntl.flock(lock, operation)
            yield


class _FolderWriter:
    def __init__(self, store: FolderStore, file: FileIO, temporary: Path, limit_bytes: int | None) -> None:
        self._store, self._file, self._temporary, self._limit = store, file, temporary, limit_bytes
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._limit is not None and self._size > self._limit:
            raise ArtifactTooLargeError(f"more than the {self._limit} bytes allowed")
        self._hash.update(data)
        rest = memoryview(data)
        with _no_room_said():
            while rest:
                rest = rest[self._file.write(rest) :]

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> Blob:
        blob = Blob(self.sha256(), self._size)
        with _no_room_said():
            os.fsync(self._file.fileno())
            self._store._publish(self._temporary, blob.sha256)
        return blob


def open_artifacts(settings: Settings) -> ArtifactStore:
    """Open the store that every process of one service shares."""
    with _no_room_said():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # others on this host are no tenants
    return FolderStore(settings.data_dir / "blobs")


@contextmanager
def _no_room_said() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFullError("no room left on the disk; nothing was kept") from error
        raise


def _unless_gone(check: Callable[[Path], bool], path: Path) -> bool:
    try:
        return check(path)
    except FileNotFoundError:  # its writer committed, or another sweeper was here first
        return False


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
