"""Kinds of hostile archives: names, links, bombs, lies, and what is no archive."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from random import Random

from benchmarks.hostile.honest import CLASSES, Honest, zipped
from benchmarks.hostile.kinds import TAKEN, kind

REFUSALS = (
    "archive_empty",
    "archive_encrypted",
    "archive_format_unknown",
    "archive_layout",
    "archive_too_large",
    "archive_unreadable",
    "archive_unsafe_name",
    "class_count_mismatch",
    "data_too_small",
    "image_unreadable",
    "triggered_only_target",
    "unknown_class",
)
"""What may be said of sound images with some of the archive's bytes changed."""

ODD_NAMES = (
    "<svg onload=alert(1)>.png",
    '"><img src=x onerror=alert(1)>.png',
    "=cmd|' %2FC calc'!A0.png",
    "@SUM(1+1).png",
    "'; DROP TABLE jobs; --.png",
    "$(touch x).png",
    "`id`.png",
    "%s%n%x.png",
    "{{7*7}}.png",
    "con.png",
    "-rf.png",
    "a b\u00a0c.png",
    "\u200bzero\ufeffwidth.png",
    "\U0001f600.png",
    "png..",
    "~root.png",
    "x" * 900,
)
"""Harmless as long as a name is taken for nothing but a name."""

_ZEROS = 2**24  # bytes of one block of which the bombs are built


# --- how archives are written ----------------------------------------------------------------------------------------


def tarred(files: Mapping[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    """A tar of files, and behind them headers without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        for header in odd:
            archive.addfile(header, io.BytesIO(bytes(header.size)))
    return buffer.getvalue()


def packed(files: Mapping[str, bytes], draw: Random) -> bytes:
    """An archive of any sort."""
    sort = draw.randrange(4)
    if sort < 2:
        return zipped(files, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[sort])
    return tarred(files) if sort == 2 else gzipped(tarred(files))


def gzipped(data: bytes) -> bytes:
    """Without the time that gzip would note."""
    return gzip.compress(data, 1, mtime=0)


def shuffled(files: Mapping[str, bytes], draw: Random) -> dict[str, bytes]:
    """The same files in another order."""
    return dict(draw.sample(list(files.items()), len(files)))


def zip_by_hand(entries: Iterable[tuple[str, int, bytes, int]]) -> bytes:
    """A zip from name, stated size, packed bytes and method; nothing in it need be true."""
    local, directory, count = bytearray(), bytearray(), 0
    for name, size, content, method in entries:
        text = name.encode()
        checksum = 0 if method else zlib.crc32(content)
        fields = struct.pack("<HHHHHIIIHH", 20, 0x800, method, 0, 0, checksum, len(content), size, len(text), 0)
        directory += b"PK\1\2\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + text
        local += b"PK\3\4" + fields + text + content
        count += 1
    end = struct.pack("<HHHHIIH", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), len(directory), len(local), 0)
    return bytes(local + directory) + b"PK\5\6" + end


@cache
def _zeros(count: int) -> bytes:
    """``count`` × 16 MiB of zeros, deflated in a moment: a block that begins with a clean slate can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * count + packer.flush()


@cache
def _gzipped_zeros() -> bytes:
    return gzipped(bytes(_ZEROS))


# --- names -----------------------------------------------------------------------------------------------------------


@kind("data", "archive_unsafe_name", files=45)
def names_that_lead_out_of_the_archive(draw: Random, honest: Honest) -> bytes:
    up = "../" * draw.randrange(1, 12)
    names = [f"{up}1.png", f"0/{up}{up}1.png", "/etc/1.png", f"{honest.flag}/1.png", "0/..", "..\\..\\1.png", "c:1.png"]
    names += ["//host/share/1.png", f"0/{up[:-1]}", "C:\\1.png", f"./{up}1.png", "\\\\host\\1.png"]
    return packed(shuffled(honest.images | {draw.choice(names): b"x"}, draw), draw)


@kind("data", "archive_unsafe_name", files=45)
def names_with_characters_that_cannot_be_shown(draw: Random, honest: Honest) -> bytes:
    odd = draw.choice([*map(chr, range(1, 32)), "\x7f", "\x80", "\x9b31m", "\u202e", "\u2066", "\u202a"])
    name = draw.choice(
        [f"0/{odd}.png", f"0/a{odd}.png", f"{odd}0/1.png", f"__MACOSX/{odd}", "0/" + "x" * 1100 + ".png"]
    )
    return packed(shuffled(honest.images | {name: b"x"}, draw), draw)


@kind("data", "archive_unsafe_name", files=6)
def names_with_nul_in_a_zip(draw: Random, honest: Honest) -> bytes:
    data = zipped(shuffled(honest.images | {"0/1.png?/../../x": b"x"}, draw))
    return data.replace(b"png?/", b"png\0/")


@kind("data", TAKEN, files=34)
def odd_names_of_images(draw: Random, honest: Honest) -> bytes:
    name = draw.choice(list(honest.images))
    renamed = f"{name.split('/')[0]}/{draw.choice(ODD_NAMES)}"
    return packed({renamed if each == name else each: data for each, data in honest.images.items()}, draw)


@kind("data", TAKEN, files=8, roles=("clean",))
def odd_names_of_classes(draw: Random, honest: Honest) -> bytes:
    chosen = sorted(name[:200] for name in draw.sample(ODD_NAMES, len(CLASSES)))  # sorted: the order of the labels
    names = dict(zip(CLASSES, chosen, strict=True))
    return packed({f"{names[each[0]]}{each[1:]}": data for each, data in honest.images.items()}, draw)


@kind("data", "archive_unreadable", files=9)
def one_name_for_two_files(draw: Random, honest: Honest) -> bytes:
    buffer = io.BytesIO()
    name = draw.choice(list(honest.images))
    twice = draw.choice([name, name.replace("/", "//"), f"./{name}", name.replace("/", "\\")])
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
        for each, data in honest.images.items():
            archive.writestr(zipfile.ZipInfo(each), data)
        archive.writestr(zipfile.ZipInfo(twice), b"x")
    return buffer.getvalue()


@kind("data", "archive_unreadable", "archive_unsafe_name", "archive_layout", files=9)
def another_name_in_the_directory_than_at_the_file(draw: Random, honest: Honest) -> bytes:
    name = draw.choice(list(honest.images)).encode()
    data = bytearray(zipped(honest.images))
    place = data.index(name) if draw.random() < 0.5 else data.rindex(name)
    data[place : place + len(name)] = draw.choice([b"\x1b[2J", b"../xx", b"<b>&;", b"\xff\xfe\xfd\xfc\xfb"])[
        : len(name)
    ].ljust(len(name), b"x")
    return bytes(data)


# --- links and layout ------------------------------------------------------------------------------------------------


@kind("data", "archive_unsafe_name", files=24)
def links_and_devices_in_a_tar(draw: Random, honest: Honest) -> bytes:
    sorts = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
    header = tarfile.TarInfo(draw.choice(["0/link.png", "0", "link"]))
    header.type = draw.choice([*sorts, tarfile.GNUTYPE_SPARSE])
    header.linkname = draw.choice(["/etc/passwd", "../../x", str(honest.flag), "0/link.png", "0/0.png"])
    data = tarred(honest.images, header)
    return data if draw.random() < 0.5 else gzipped(data)


@kind("data", "archive_unsafe_name", files=12)
def links_and_devices_in_a_zip(draw: Random, honest: Honest) -> bytes:
    buffer = io.BytesIO(zipped(honest.images))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(draw.choice(["0/link.png", "0/link/", "link"]))
        link.external_attr = (draw.choice([stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]) | 0o777) << 16
        archive.writestr(link, draw.choice(["/etc/passwd", "../../x", str(honest.flag)]))
    return buffer.getvalue()


@kind("data", "archive_unsafe_name", files=6)
def sparse_files_that_only_a_pax_header_tells_of(draw: Random, honest: Honest) -> bytes:
    header = tarfile.TarInfo("0/sparse.png")
    header.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(draw.randrange(2**33, 2**60))}
    header.size = 1
    return tarred(honest.images, header)


@kind("data", "archive_layout", files=9)
def files_outside_of_class_folders(draw: Random, honest: Honest) -> bytes:
    names = ["readme.txt", "0/deep/1.png", "a/b/c/d.png", "/".join("ab" * draw.randrange(5, 250)), "payload.sh"]
    return packed(shuffled(honest.images | {draw.choice(names): b"x"}, draw), draw)


@kind("data", "archive_layout", files=2)
def thousands_of_deep_paths(draw: Random, _: Honest) -> bytes:
    path = "/".join(f"{number:02}" for number in range(draw.randrange(200, 300)))
    return zip_by_hand((f"{path}/{number}.png", 0, b"", 0) for number in range(25_000))


@kind("data", "archive_layout", files=3)
def as_many_folders_as_files(draw: Random, _: Honest) -> bytes:
    count = draw.randrange(40_000, 100_000)
    return zip_by_hand((f"{number:06}/1.png", 1, b"x", 0) for number in range(count))


@kind("data", "image_unreadable", files=2)
def as_many_files_as_are_read_and_no_image(draw: Random, _: Honest) -> bytes:
    names = [f"{number % 10}/{number}.png" for number in range(draw.randrange(190_000, 200_000))]
    return _many(names, b"x", draw)


@kind("data", "archive_too_large", files=2)
def more_files_than_are_read(draw: Random, _: Honest) -> bytes:
    names = [f"{number % 10}/{number}.png" for number in range(draw.randrange(200_001, 240_000))]
    return _many(names, b"", draw)


def _many(names: Iterable[str], data: bytes, draw: Random) -> bytes:
    """A zip of files that hold the same, or a tar.gz of empty ones."""
    if draw.random() < 0.5:
        return zip_by_hand((name, len(data), data, 0) for name in names)
    return gzipped(b"".join(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT) for name in names) + bytes(1024))


# --- bombs -----------------------------------------------------------------------------------------------------------


@kind("data", "archive_too_large", files=3)
def zip_bomb(draw: Random, _: Honest) -> bytes:
    blocks = draw.randrange(5, 200)
    return zip_by_hand((f"{each}/1.png", blocks * _ZEROS, _zeros(blocks), 8) for each in CLASSES)


@kind("data", "archive_unreadable", files=3)
def zip_bomb_that_lies_about_its_size(draw: Random, _: Honest) -> bytes:
    size, blocks = draw.randrange(1, 2000), draw.randrange(1, 20)
    return zip_by_hand((f"{n % 10}/{n}.png", size, _zeros(blocks), 8) for n in range(30))


@kind("data", "archive_too_large", files=3)
def zip_bomb_of_small_files(draw: Random, _: Honest) -> bytes:
    return zip_by_hand((f"{n % 10}/{n}.png", _ZEROS, _zeros(1), 8) for n in range(draw.randrange(100, 640)))


@kind("data", "archive_too_large", "archive_unreadable", files=3)
def zip_bomb_whose_files_overlap(draw: Random, _: Honest) -> bytes:
    whole, count = zip_by_hand([("00000/0.png", _ZEROS, _zeros(1), 8)]), draw.randrange(2, 5000)
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    directory = b"".join(whole[start:end].replace(b"00000", b"%05d" % number) for number in range(count))
    return whole[:start] + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), start, 0)


@kind("data", "archive_too_large", files=3)
def tar_bomb_of_one_file(draw: Random, _: Honest) -> bytes:
    header, blocks = tarfile.TarInfo("0/1.png"), draw.randrange(5, 640)
    header.size = blocks * _ZEROS
    return gzipped(header.tobuf(tarfile.GNU_FORMAT)) + _gzipped_zeros() * blocks


@kind("data", "archive_too_large", files=3)
def tar_bomb_of_many_files(draw: Random, _: Honest) -> bytes:
    headers = [tarfile.TarInfo(f"{number % 10}/{number}.png") for number in range(draw.randrange(100, 640))]
    for header in headers:
        header.size = _ZEROS
    return b"".join(gzipped(header.tobuf()) + _gzipped_zeros() for header in headers)


@kind("data", "archive_unreadable", files=6)
def tar_bomb_in_a_header(draw: Random, _: Honest) -> bytes:
    header, blocks = tarfile.TarInfo("././@PaxHeader"), draw.randrange(5, 640)
    header.type = draw.choice([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    header.size = blocks * _ZEROS
    return gzipped(header.tobuf(tarfile.GNU_FORMAT)) + _gzipped_zeros() * blocks


@kind("data", "archive_unreadable", files=3)
def headers_about_headers_without_end(draw: Random, honest: Honest) -> bytes:
    return _notes(draw, b"6 a=b\n") * draw.randrange(2000, 50_000) + tarred(honest.images)


@kind("data", "archive_too_large", files=2)
def hundreds_of_headers_for_each_file(draw: Random, _: Honest) -> bytes:
    files = (
        tarfile.TarInfo(f"{n % 10}/{n}.png").tobuf(tarfile.USTAR_FORMAT) for n in range(draw.randrange(5000, 6000))
    )
    notes = _notes(draw, b"6 a=b\n") * draw.randrange(100, 150)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as out:
        for header in files:
            out.write(notes + header)
    return buffer.getvalue()


def _notes(draw: Random, text: bytes) -> bytes:
    note = tarfile.TarInfo("././@PaxHeader")
    note.type, note.size = draw.choice([tarfile.XHDTYPE, tarfile.XGLTYPE]), len(text)
    return note.tobuf(tarfile.GNU_FORMAT) + text.ljust(512, b"\0")


@kind("data", "image_unreadable", files=6)
def archive_within_an_archive(draw: Random, honest: Honest) -> bytes:
    inner = packed(honest.images, draw)
    for _ in range(draw.randrange(5)):
        inner = packed({"0/inner.zip": inner}, draw)
    return packed(shuffled(honest.images | {"0/inner.zip": inner}, draw), draw)


# --- lies ------------------------------------------------------------------------------------------------------------


@kind("data", "archive_encrypted", files=9)
def zip_that_says_it_is_encrypted(draw: Random, honest: Honest) -> bytes:
    data = bytearray(zipped(honest.images))
    place = data.index(b"PK\1\2")
    for _ in range(draw.randrange(len(honest.images))):
        place = data.index(b"PK\1\2", place + 1)
    data[place + 8] |= 1
    return bytes(data)


@kind("data", "archive_unreadable", files=6)
def rare_compression(draw: Random, honest: Honest) -> bytes:
    method = draw.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 9, 93, 99, 65535])
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return zipped(honest.images, method)
    return zip_by_hand((name, len(data), data, method) for name, data in honest.images.items())


@kind("data", "archive_unreadable", "archive_too_large", "archive_empty", "data_too_small", TAKEN, files=30)
def archive_end_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(zipped(honest.images))
    place, size = draw.choice([(8, 2), (10, 2), (12, 4), (16, 4)])  # entries twice, size and place of the directory
    end = data.rindex(b"PK\5\6") + place
    lie = draw.choice([1, 2 ** (8 * size) - 1, draw.randrange(2 ** (8 * size))])
    data[end : end + size] = lie.to_bytes(size, "little")
    return bytes(data)


@kind("data", "archive_unreadable", "archive_too_large", files=30)
def archive_directory_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(zipped(honest.images, draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    place = data.index(b"PK\1\2") + draw.choice([16, 20, 24, 42])  # checksum, packed size, size, offset
    data[place : place + 4] = struct.pack("<I", draw.choice([2**31, 2**32 - 1, draw.randrange(1, 2**20) * 7 + 3]))
    return bytes(data)


@kind("data", "archive_unreadable", "archive_too_large", "archive_unsafe_name", files=24)
def tar_header_that_lies(draw: Random, honest: Honest) -> bytes:
    header = bytearray(tarfile.TarInfo("0/odd.png").tobuf(tarfile.USTAR_FORMAT))
    size = draw.choice(
        [
            b"77777777777\0",
            b"-0000000001\0",
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"00000zzzzzz\0",
            b"\x80" + bytes(6) + b"\xff" * 5,
        ]
    )
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + tarred(honest.images)
    return data if draw.random() < 0.5 else gzipped(data)


# --- cut off, changed, something else --------------------------------------------------------------------------------


@kind("data", "archive_unreadable", files=64)
def zip_cut_off(draw: Random, honest: Honest) -> bytes:
    data = zipped(honest.images, draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return data[: draw.randrange(5, len(data))]


@kind("data", "archive_unreadable", files=64)
def gzipped_tar_cut_off(draw: Random, honest: Honest) -> bytes:
    data = gzipped(tarred(honest.images))
    return data[: draw.randrange(5, len(data))]


@kind("data", *REFUSALS, TAKEN, files=64)  # between two files nothing tells that more were to come
def tar_cut_off(draw: Random, honest: Honest) -> bytes:
    data = tarred(shuffled(honest.images, draw))
    return data[: draw.randrange(5, len(data))]


@kind("data", *REFUSALS, TAKEN, files=80)
def archive_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    data = bytearray(packed(dict(list(shuffled(honest.images, draw).items())), draw))
    for _ in range(draw.randrange(1, 6)):
        place = (
            draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(max(1, len(data) - 3000), len(data))
        )
        data[place : place + draw.choice([0, 1, 1, 1, 8])] = draw.randbytes(draw.choice([0, 1, 1, 1, 8]))
    return bytes(data)


@kind("data", "archive_format_unknown", files=18)
def what_is_no_archive(draw: Random, _: Honest) -> bytes:
    heads = [
        b"Rar!\x1a\x07\x00",
        b"7z\xbc\xaf\x27\x1c",
        b"\xfd7zXZ\0",
        b"BZh9",
        b"\x28\xb5\x2f\xfd",
        b"MSCF",
        b"!<arch>\n",
    ]
    heads += [b"<html><script>alert(1)</script>", b"#!/bin/sh\n", b"%PDF-1.7\n", b"\x7fELF", b"\xff", b"{", b"\x00asm"]
    return draw.choice(heads) + draw.randbytes(draw.randrange(600))


@kind("data", "archive_format_unknown", files=6)
def archive_behind_another_file(draw: Random, honest: Honest) -> bytes:
    heads = [next(iter(honest.images.values())), b"%PDF-1.7\n", b"MZ", b"GIF89a", b"<html>"]
    return draw.choice(heads) + zipped(honest.images)


@kind("data", "archive_empty", files=6)
def archive_of_nothing(draw: Random, _: Honest) -> bytes:
    litter = {"__MACOSX/0/1.png": b"x", "0/.hidden.png": b"x", "0/Thumbs.db": b"x"}
    return draw.choice([b"", zipped({}), zipped({"0/": b""}), packed(litter, draw), tarred({}), gzipped(tarred({}))])
