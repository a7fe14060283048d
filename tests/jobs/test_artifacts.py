"""Bytes in a folder, named by their digest."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.artifacts import Blob, FolderStore, open_artifacts
from jobs.errors import ArtifactTooLargeError, BlobMissingError, StorageFullError
from jobs.settings import Settings

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "blobs")


def files_in(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"lock"}


def make_old(store: FolderStore, blob: Blob, seconds: float = 2 * HOUR) -> None:
    then = time.time() - seconds
    os.utime(store.path(blob.sha256), (then, then))


@given(st.lists(st.binary(max_size=100)))
def test_a_blob_is_what_was_written_under_its_digest(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    store, whole = FolderStore(tmp_path_factory.getbasetemp() / "blobs"), b"".join(parts)
    with store.writer() as writer:
        for part in parts:
            writer.write(part)
        blob = writer.commit()
    assert blob == Blob(hashlib.sha256(whole).hexdigest(), len(whole))
    assert store.path(blob.sha256).read_bytes() == whole
    assert store.put_bytes(whole) == blob


def test_a_file_is_copied(store: FolderStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * 1024**2 + 1))
    blob = store.put_file(source)
    assert store.path(blob.sha256).read_bytes() == source.read_bytes()
    assert blob.size == source.stat().st_size


def test_the_same_content_from_many_at_once_is_one_blob(store: FolderStore, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    with ThreadPoolExecutor(8) as pool:
        blobs = {future.result() for future in [pool.submit(store.put_bytes, content) for _ in range(16)]}
    assert len(blobs) == 1
    assert files_in(tmp_path) == {blobs.pop().sha256}


def test_without_commit_nothing_stays(store: FolderStore, tmp_path: Path) -> None:
    with store.writer() as writer:
        writer.write(b"abandoned")
    with suppress(RuntimeError), store.writer() as writer:
        writer.write(b"interrupted")
        raise RuntimeError
    assert files_in(tmp_path) == set()


def test_a_killed_writer_leaves_nothing_visible_and_is_cleaned_up_after(store: FolderStore, tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from jobs.artifacts import FolderStore\n"
        "with FolderStore(pathlib.Path(sys.argv[1])).writer() as writer:\n"
        "    writer.write(b'half'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "blobs")], check=False)
    assert killed.returncode == -9
    with pytest.raises(BlobMissingError):
        store.path(hashlib.sha256(b"half").hexdigest())
    (left,) = (tmp_path / "blobs" / "tmp").iterdir()
    assert store.collect(set, older_than_seconds=HOUR) == 0  # as far as anyone knows it is still being written
    os.utime(left, (0, 0))
    assert store.collect(set, older_than_seconds=HOUR) == 1
    assert files_in(tmp_path) == set()


def test_more_than_the_limit_is_refused_and_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    with store.writer(limit_bytes=10) as writer:
        writer.write(b"12345")
        with pytest.raises(ArtifactTooLargeError):
            writer.write(b"678901")
    assert files_in(tmp_path) == set()
    with store.writer(limit_bytes=10) as writer:
        writer.write(b"1234567890")
        assert writer.commit().size == 10


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import pathlib, resource, sys\n"
        "from jobs.artifacts import FolderStore; from jobs.errors import StorageFullError\n"
        "store = FolderStore(pathlib.Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # the kernel then refuses as a full disk does
        "try:\n"
        "    store.put_bytes(bytes(200_000))\n"
        "except StorageFullError:\n"
        "    store.put_bytes(b'fits'); sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == 7
    assert files_in(tmp_path) == {hashlib.sha256(b"fits").hexdigest()}


@pytest.mark.parametrize("call", ["fsync", "utime"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_committing_is_said_and_leaves_nothing(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, reason: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as full:
        full.setattr(os, call, refuse)
        with pytest.raises(StorageFullError):
            store.put_bytes(b"no room")
    assert files_in(tmp_path) == set()


def test_other_errors_of_the_disk_are_not_called_a_full_one(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken"):
        store.put_bytes(b"lost")
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["0" * 64, "", "../lock", "tmp", "A" * 64, "0" * 63 + "\n"])
def test_a_name_without_a_blob_is_missing(store: FolderStore, name: str) -> None:
    with pytest.raises(BlobMissingError):
        store.path(name)


# --- collecting ---


def test_only_old_blobs_that_no_record_names_are_collected(store: FolderStore, tmp_path: Path) -> None:
    old_named, old_unnamed, young_unnamed = (store.put_bytes(name) for name in (b"a", b"b", b"c"))
    make_old(store, old_named)
    make_old(store, old_unnamed)
    assert store.collect(lambda: {old_named.sha256}, older_than_seconds=HOUR) == 1
    assert files_in(tmp_path) == {old_named.sha256, young_unnamed.sha256}


def test_a_blob_that_is_put_again_counts_as_new(store: FolderStore) -> None:
    blob = store.put_bytes(b"again")
    make_old(store, blob)
    store.put_bytes(b"again")
    assert store.collect(set, older_than_seconds=HOUR) == 0
    assert store.path(blob.sha256).read_bytes() == b"again"


def test_a_blob_that_was_let_go_is_collected_young_unless_it_is_named_or_put_again(store: FolderStore) -> None:
    unnamed, named, again = (store.put_bytes(content) for content in (b"a", b"b", b"c"))
    for blob in (unnamed, named, again, Blob("0" * 64, 0)):
        store.let_go(blob.sha256)
    store.put_bytes(b"c")
    assert store.collect(lambda: {named.sha256}, older_than_seconds=HOUR) == 1
    assert store.path(named.sha256).exists()
    assert store.path(again.sha256).exists()


def test_a_blob_that_is_put_again_while_collecting_stays(store: FolderStore) -> None:
    blob = store.put_bytes(b"again")
    make_old(store, blob)

    def live() -> set[str]:
        store.put_bytes(b"again")  # and the row that names it is not written yet
        return set()

    assert store.collect(live, older_than_seconds=HOUR) == 0
    assert store.path(blob.sha256).read_bytes() == b"again"


def test_a_blob_written_while_collecting_stays_though_its_row_comes_late(store: FolderStore) -> None:
    make_old(store, store.put_bytes(b"old"))
    written: list[Blob] = []

    def live() -> set[str]:
        written.append(store.put_bytes(b"new"))
        return set()

    assert store.collect(live, older_than_seconds=HOUR) == 1
    assert store.path(written[0].sha256).read_bytes() == b"new"


def test_a_blob_that_is_put_again_just_before_it_is_removed_stays(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"contended"
    blob = store.put_bytes(content)
    make_old(store, blob)
    remove, again = Path.unlink, []

    with ThreadPoolExecutor(1) as pool:

        def remove_late(path: Path, missing_ok: bool = False) -> None:
            if path.name == blob.sha256:
                again.append(pool.submit(store.put_bytes, content))
                wait(again, timeout=0.3)  # it has to wait for us; were it done by now, we would remove what it put
            remove(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", remove_late)
        assert store.collect(set, older_than_seconds=HOUR) == 1
        assert [put.result() for put in again] == [blob]
    assert store.path(blob.sha256).read_bytes() == content


def test_a_blob_counts_as_new_from_its_commit_however_long_it_was_written(store: FolderStore, tmp_path: Path) -> None:
    with store.writer() as writer:
        writer.write(b"slow")
        (temporary,) = (tmp_path / "blobs" / "tmp").iterdir()
        os.utime(temporary, (0, 0))
        blob = writer.commit()
    assert store.collect(set, older_than_seconds=HOUR) == 0
    assert store.path(blob.sha256).read_bytes() == b"slow"


def test_bytes_that_are_put_again_stay_the_same_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    place = store.path(store.put_bytes(b"x").sha256)
    before = place.stat()
    os.utime(place, (0, 0))
    store.put_bytes(b"x")
    assert place.stat().st_ino == before.st_ino  # whoever may read it by its inode, as under Landlock, still may
    assert place.stat().st_mtime >= before.st_mtime
    assert list((tmp_path / "tmp").iterdir()) == []


def test_bytes_that_were_damaged_are_whole_once_they_are_put_again(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    place = store.path(store.put_bytes(b"whole").sha256)
    for damaged in (b"WHOLE", b"whol", b"", b"wholeness"):
        place.write_bytes(damaged)
        store.put_bytes(b"whole")
        assert place.read_bytes() == b"whole"


def test_others_on_the_host_cannot_look_into_the_data_folder(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        open_artifacts(Settings(data_dir=tmp_path / "data"))
    finally:
        os.umask(umask)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
