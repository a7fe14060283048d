from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from worker.loading.archives import archive_format, members
from worker.loading.refusal import RefusedError
from worker.task import IntakeLimits

LIMITS = IntakeLimits()
FILES = {f"{folder}/{i}.png": np.random.default_rng(i).bytes(3000) for folder in ("cat", "dog") for i in range(5)}
ZEROS = 2**24  # bytes of one block of which the bombs are built


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def targz(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(tarred(files))


PACKERS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "gnu tar": lambda files: tarred(files, tarfile.GNU_FORMAT),
    "tar.gz": targz,
}


def read(path: Path) -> dict[str, bytes]:
    return {member.name: member.read() for member in members(path, LIMITS)}


def code_of(path: Path, limits: IntakeLimits = LIMITS) -> str:
    with pytest.raises(RefusedError) as refusal:
        any(member.read() is None for member in members(path, limits))  # reads all and keeps nothing
    (problem,) = refusal.value.problems
    assert len(problem.detail) > 20
    return problem.code


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def put(data: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return path

    return put


Put = Callable[[bytes], Path]


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", PACKERS)
def test_members_come_back_as_they_were_packed(put: Put, packer: str) -> None:
    path = put(PACKERS[packer](FILES))
    assert archive_format(path) == packer.rsplit(" ", 1)[-1]
    assert read(path) == FILES


@pytest.mark.parametrize("packer", ["zip", "stored zip"])
def test_the_members_of_a_zip_are_read_in_any_order_before_its_end_is_asked_for(put: Put, packer: str) -> None:
    found = members(put(PACKERS[packer](FILES)), LIMITS)
    kept = list(islice(found, len(FILES)))
    assert {member.name: member.read() for member in reversed(kept)} == FILES
    found.close()


@pytest.mark.parametrize("packer", PACKERS)
def test_names_may_be_long_and_in_any_script(put: Put, packer: str) -> None:
    files = {f"{'k' * 90}/{'猫' * 60}.png": b"1", "é/1.png": b"2", "./a/./b.png": b"3"}
    assert read(put(PACKERS[packer](files))) == {**dict(list(files.items())[:2]), "a/b.png": b"3"}


@pytest.mark.parametrize("packer", PACKERS)
def test_what_desktops_leave_behind_is_skipped(put: Put, packer: str) -> None:
    litter = ("__MACOSX/cat/._1.png", "cat/.DS_Store", "cat/Thumbs.db", ".git/config", "cat/desktop.ini")
    assert read(put(PACKERS[packer]({**FILES, **dict.fromkeys(litter, b"x")}))) == FILES


def test_folders_are_no_members(put: Put) -> None:
    assert read(put(zipped({"cat/": b"", "cat/1.png": b"x", "dog\\": b""}))) == {"cat/1.png": b"x"}


def test_backslashes_part_folders(put: Put) -> None:
    assert list(read(put(zipped({"cat\\1.png": b"x"})))) == ["cat/1.png"]


@pytest.mark.parametrize("packer", PACKERS)
def test_an_archive_may_have_no_members(put: Put, packer: str) -> None:
    assert read(put(PACKERS[packer]({}))) == {}


# --- names and kinds -------------------------------------------------------------------------------------------------

UNSAFE = (
    "../1.png",
    "a/../../1.png",
    "/etc/1.png",
    "a/..",
    "..\\1.png",
    "C:\\1.png",
    "a\n/1.png",
    "a\x7f",
    "\u202egnp.1",
    "x" * 1025,
)


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("packer", PACKERS)
def test_unsafe_names_are_refused_even_in_litter(put: Put, packer: str, name: str) -> None:
    assert code_of(put(PACKERS[packer]({"cat/1.png": b"x", name: b"x"}))) == "archive_unsafe_name"
    assert code_of(put(PACKERS[packer]({"cat/1.png": b"x", f"__MACOSX/../{name}": b"x"}))) == "archive_unsafe_name"


def test_a_name_with_nul_in_a_zip_is_refused(put: Put) -> None:
    assert code_of(put(zipped({"cat/1.png?../x": b"x"}).replace(b"png?", b"png\0"))) == "archive_unsafe_name"


def test_a_name_in_no_encoding_is_refused(put: Put) -> None:
    assert code_of(put(tarred({"cat/????.png": b"x"}).replace(b"????", b"\xff\xfe\xfd\xfc"))) in {
        "archive_unsafe_name",
        "archive_unreadable",  # the checksum no longer fits
    }


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_in_a_tar_are_refused(put: Put, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        header = tarfile.TarInfo("cat/1.png")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
    assert code_of(put(buffer.getvalue())) == "archive_unsafe_name"


def test_a_sparse_file_that_only_a_pax_header_tells_of_is_refused(put: Put) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo("cat/1.png")
        header.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**10)}
        header.size = 1
        archive.addfile(header, io.BytesIO(b"x"))
    assert code_of(put(buffer.getvalue())) == "archive_unsafe_name"


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(put: Put, mode: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("cat/1.png")
        entry.external_attr = (mode | 0o777) << 16
        archive.writestr(entry, b"/etc/passwd")
    assert code_of(put(buffer.getvalue())) == "archive_unsafe_name"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_for_two_files_is_refused(put: Put) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/1.png", b"x")
        archive.writestr("cat/1.png", b"y")
    assert code_of(put(buffer.getvalue())) == "archive_unreadable"


# --- formats and damage ----------------------------------------------------------------------------------------------


def test_an_encrypted_zip_is_refused(put: Put) -> None:
    data = bytearray(zipped({"cat/1.png": b"x" * 100}))
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    assert code_of(put(bytes(data))) == "archive_encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compression_is_refused(put: Put, method: int) -> None:
    assert code_of(put(zipped(FILES, method))) == "archive_unreadable"


@pytest.mark.parametrize(
    "data", [b"Rar!\x1a\x07\x00" + bytes(600), b"7z\xbc\xaf\x27\x1c" + bytes(600), b"hello", b"\x89PNG\r\n"]
)
def test_other_formats_are_refused(put: Put, data: bytes) -> None:
    assert code_of(put(data)) == "archive_format_unknown"


def test_an_empty_file_is_refused(put: Put) -> None:
    assert code_of(put(b"")) == "archive_empty"


@pytest.mark.parametrize("packer", ["zip", "stored zip", "tar.gz"])
def test_an_archive_cut_off_anywhere_is_refused(put: Put, packer: str) -> None:
    data = PACKERS[packer](FILES)
    for length in {*range(5, len(data), len(data) // 40), len(data) - 1}:
        assert code_of(put(data[:length])) == "archive_unreadable", length


def test_a_tar_cut_off_within_a_file_or_header_is_refused(put: Put) -> None:
    data = tarred(FILES)
    whole = 512 + 3072
    for length in (600, 512 + 2999, whole + 100, 2 * whole + 700):
        assert code_of(put(data[:length])) == "archive_unreadable", length


@pytest.mark.parametrize("packer", PACKERS)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(put: Put, packer: str) -> None:
    data = PACKERS[packer]({name: content[:100] for name, content in FILES.items()})
    generator = np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.integers(1, 5)):
            damaged[generator.integers(len(data))] = generator.integers(256)
        try:
            read(put(bytes(damaged)))
        except RefusedError:
            refusals += 1
    assert refusals > 50


def test_a_header_amid_a_tar_that_is_damaged_does_not_end_it_quietly(put: Put) -> None:
    data = bytearray(tarred(FILES))
    data[512 + 3072 + 10] ^= 0xFF
    assert code_of(put(bytes(data))) == "archive_unreadable"


def test_headers_about_headers_without_end_are_refused(put: Put) -> None:
    note = tarfile.TarInfo("././@PaxHeader")
    note.type, note.size = tarfile.XHDTYPE, 6
    link = note.tobuf(tarfile.GNU_FORMAT) + b"6 a=b\n".ljust(512, b"\0")
    assert code_of(put(link * 5000 + tarred(FILES))) == "archive_unreadable"


def test_more_headers_about_files_than_files_need_are_refused(put: Put) -> None:
    note = tarfile.TarInfo("././@PaxHeader")
    note.type, note.size = tarfile.XHDTYPE, 6
    notes = (note.tobuf(tarfile.GNU_FORMAT) + b"6 a=b\n".ljust(512, b"\0")) * 60
    files = [tarfile.TarInfo(f"cat/{i}.png").tobuf(tarfile.GNU_FORMAT) for i in range(20)]
    assert code_of(put(b"".join(notes + file for file in files))) == "archive_too_large"
    assert len(read(put(b"".join(notes + file for file in files[:10]) + bytes(1024)))) == 10


def test_a_name_that_differs_at_the_file_is_told_in_plain_characters(put: Put) -> None:
    path = put(zipped(FILES).replace(b"cat/1.png", b"\x1b[2J\n.png", 1))
    with pytest.raises(RefusedError) as refusal:
        read(path)
    assert refusal.value.problems[0].code == "archive_unreadable"
    assert refusal.value.problems[0].detail.isprintable()


# --- bombs -----------------------------------------------------------------------------------------------------------


def zero_blocks(count: int) -> bytes:
    """``count`` × 16 MiB of zeros, deflated in a moment: a block that begins with a clean slate can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * count + packer.flush()


def zip_by_hand(entries: list[tuple[str, int, bytes, int]]) -> bytes:
    """A zip from name, stated size, packed bytes and method; nothing in it need be true."""
    local, directory = b"", b""
    for name, size, packed, method in entries:
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 0, 0, len(packed), size, len(name), 0)
        directory += (
            b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name.encode()
        )
        local += b"PK\3\4" + fields + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(local), 0)
    return local + directory + b"PK\5\6" + end


def honest_zip_bomb() -> bytes:
    packed = zero_blocks(214)
    return zip_by_hand([(f"cat/{i}.png", 214 * ZEROS, packed, 8) for i in range(3)])


def lying_zip_bomb() -> bytes:
    return zip_by_hand([("cat/1.png", 1000, zero_blocks(640), 8)])


def zip_bomb_of_small_members() -> bytes:
    packed = zero_blocks(1)
    return zip_by_hand([(f"cat/{i}.png", ZEROS, packed, 8) for i in range(640)])


def overlapping_zip_bomb() -> bytes:
    whole = zip_by_hand([("cat/0.png", ZEROS, zero_blocks(1), 8)])
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    directory = b"".join(whole[start:end].replace(b"cat/0", b"%05d" % i) for i in range(5000))
    return whole[:start] + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 5000, 5000, len(directory), start, 0)


def tar_bomb_of_one_file() -> bytes:
    header = tarfile.TarInfo("cat/1.png")
    header.size = 640 * ZEROS
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + gzip_zeros(640)


def tar_bomb_of_many_files() -> bytes:
    zeros = gzip_zeros(1)
    headers = [tarfile.TarInfo(f"cat/{i}.png") for i in range(640)]
    for header in headers:
        header.size = ZEROS
    return b"".join(gzip.compress(header.tobuf()) + zeros for header in headers)


def tar_bomb_in_a_header() -> bytes:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 640 * ZEROS
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + gzip_zeros(640)


def gzip_zeros(count: int) -> bytes:
    return gzip.compress(bytes(ZEROS)) * count


BOMBS = {
    honest_zip_bomb: "archive_too_large",
    lying_zip_bomb: "archive_unreadable",
    zip_bomb_of_small_members: "archive_too_large",
    overlapping_zip_bomb: "archive_too_large",
    tar_bomb_of_one_file: "archive_too_large",
    tar_bomb_of_many_files: "archive_too_large",
    tar_bomb_in_a_header: "archive_unreadable",
}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_of_10_gb_is_refused_within_seconds_and_little_memory(put: Put, bomb: Callable[[], bytes]) -> None:
    path = put(bomb())
    start = time.process_time()  # what else the machine does is not the point
    tracemalloc.start()
    try:
        assert code_of(path) == BOMBS[bomb]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 64 * 2**20


def test_a_whole_archive_may_not_inflate_past_its_limit(put: Put) -> None:
    limits = IntakeLimits(archive_bytes=20_000)
    for pack in PACKERS.values():
        assert code_of(put(pack(FILES)), limits) == "archive_too_large"


def test_a_member_may_not_inflate_past_its_limit(put: Put) -> None:
    limits = IntakeLimits(archive_member_bytes=2999)
    for pack in PACKERS.values():
        assert code_of(put(pack(FILES)), limits) == "archive_too_large"


def test_an_archive_may_not_hold_more_entries_than_its_limit(put: Put) -> None:
    limits = IntakeLimits(archive_entries=9)
    for pack in PACKERS.values():
        assert code_of(put(pack(FILES)), limits) == "archive_too_large"


def test_names_may_not_take_more_than_their_share_of_the_limit(put: Put) -> None:
    limits = IntakeLimits(archive_entries=10)
    for pack in PACKERS.values():
        assert code_of(put(pack({f"cat/{i}{'x' * 300}.png": b"" for i in range(9)})), limits) == "archive_too_large"


def test_a_zip_directory_that_asks_for_memory_does_not_get_it(put: Put) -> None:
    data = zipped({f"{i}": b"" for i in range(5000)})
    tracemalloc.start()
    try:
        assert code_of(put(data), IntakeLimits(archive_entries=10)) == "archive_too_large"
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
