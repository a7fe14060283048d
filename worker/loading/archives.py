"""Archives that someone sent: read member by member, never extracted, with every cap counted while inflating.

A zip's directory may lie about sizes, a tar's headers may ask for gigabytes, and either may inflate to anything; none
of them is believed.
"""

from __future__ import annotations

import functools
import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Protocol

from worker.loading.refusal import listed, refused, told
from worker.loading.zips import DAMAGED, is_encrypted, opened_zip
from worker.task import IntakeLimits

ArchiveFormat = Literal["zip", "tar", "tar.gz"]

_LITTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|^[A-Za-z]:|^/|(^|/)\.\.(/|$)")
_NAME_CHARACTERS = 1024
_NAME_CHARACTERS_ON_AVERAGE = 160
_CHUNK = 2**16
_RATIO_COUNTS_FROM = 16 * 1024**2
_TAR_BLOCK = 512
_TAR_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_TAR_NOTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
_TAR_NOTE_BYTES = 4096  # tarfile searches them in quadratic time
_HEADERS_PER_ENTRY = 2  # a long name takes one more
_FREE_HEADERS = 1000
_TAR_DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError)
_EXPORT_AGAIN = "Send class folders of images as zip, tar or tar.gz, for example: zip -r clean.zip cat dog"


@dataclass(frozen=True)
class Member:
    """One regular file of an archive.

    ``read`` works until the next member is asked for; of a zip, as long as `members` has not come to its end.
    """

    parts: tuple[str, ...]
    read: Callable[[], bytes]

    @property
    def name(self) -> str:
        """Its path in the archive."""
        return "/".join(self.parts)


def archive_format(path: Path) -> ArchiveFormat:
    """Recognise an archive by its first bytes, whatever its name.

    Raises:
        RefusedError: ``archive_empty`` or ``archive_format_unknown``.
    """
    with path.open("rb") as file:
        head = file.read(_TAR_BLOCK)
    if not head:
        raise refused("archive_empty", "The file is empty. " + _EXPORT_AGAIN)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head[257:262] == b"ustar" or head == bytes(_TAR_BLOCK):
        return "tar"
    raise refused("archive_format_unknown", "The file is neither zip, tar nor tar.gz. " + _EXPORT_AGAIN)


def members(path: Path, limits: IntakeLimits) -> Generator[Member, None, None]:
    """Go through the regular files of an archive, in its order, but for hidden files and what desktops leave behind.

    Raises:
        RefusedError: ``archive_unsafe_name``, ``archive_too_large``, ``archive_encrypted``, ``archive_unreadable``, or
            those of `archive_format`. Some come before the first member, others not until the damage is reached.
    """
    kind = archive_format(path)
    found = _zip_members(path, limits) if kind == "zip" else _tar_members(path, kind, limits)
    seen: set[str] = set()
    characters = 0
    for member in found:
        if not member.parts or member.name in seen:
            raise refused(
                "archive_unreadable",
                f"{listed([member.name])} has no name of its own in the archive. Pack each file once, under its name.",
            )
        seen.add(member.name)
        characters += len(member.name)
        if characters > limits.archive_entries * _NAME_CHARACTERS_ON_AVERAGE:
            _too_large(f"The names in the archive take more than {characters} characters.")
        if not any(part in _LITTER or part.startswith(".") for part in member.parts):
            yield member


def _safe_parts(name: str) -> tuple[str, ...]:
    name = name.replace("\\", "/")  # some tools on Windows write it so
    if len(name) > _NAME_CHARACTERS or _UNSAFE.search(name):
        raise refused(
            "archive_unsafe_name",
            f"{listed([name])} leads out of the archive, has more than {_NAME_CHARACTERS} characters or some that "
            "cannot be shown. Pack plain relative names.",
        )
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _too_large(detail: str) -> NoReturn:
    raise refused("archive_too_large", detail + " Send fewer or smaller images.")


def _check_growth(inflated: int, packed: int, limits: IntakeLimits) -> None:
    if inflated > limits.archive_bytes:
        _too_large(f"The archive inflates to more than {limits.archive_bytes} bytes.")
    if inflated > max(_RATIO_COUNTS_FROM, limits.archive_ratio * packed):
        _too_large(f"The archive inflates to more than {limits.archive_ratio} times its size.")


def _check_member_size(name: str, size: int, limits: IntakeLimits) -> None:
    if size > limits.archive_member_bytes:
        _too_large(
            f"{listed([name])} inflates to {size} bytes; at most {limits.archive_member_bytes} are read of one file."
        )


# --- zip -------------------------------------------------------------------------------------------------------------


def _zip_members(path: Path, limits: IntakeLimits) -> Iterator[Member]:
    try:
        with opened_zip(path, entries=limits.archive_entries, code="archive_too_large") as archive:
            _check_zip(archive.infolist(), path.stat().st_size, limits)
            for entry in archive.infolist():
                if not entry.orig_filename.endswith(("/", "\\")):
                    yield Member(_safe_parts(entry.orig_filename), functools.partial(_read_zip, archive, entry))
    except DAMAGED as error:
        raise refused(
            "archive_unreadable", f"The zip is damaged or cut off: {told(error)}. Pack and send it again."
        ) from error


def _check_zip(entries: Sequence[zipfile.ZipInfo], packed: int, limits: IntakeLimits) -> None:
    """Check all that the directory states, before anything is inflated. Reading never passes the sizes stated here."""
    for entry in entries:
        name = entry.orig_filename  # the other is cut at a NUL
        _safe_parts(name)
        if is_encrypted(entry):
            raise refused("archive_encrypted", f"{listed([name])} is encrypted. Pack it without a password.")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused("archive_unsafe_name", f"{listed([name])} is a link or a device. Pack regular files only.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused(
                "archive_unreadable", f"{listed([name])} is neither stored nor deflated. Use an ordinary zip."
            )
        _check_member_size(name, entry.file_size, limits)
    _check_growth(sum(entry.file_size for entry in entries), packed, limits)
    if sum(entry.compress_size for entry in entries) > packed:
        raise refused("archive_unreadable", "The zip's directory lets files overlap. Pack and send it again.")


def _read_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read one file in small steps: asked for all at once, ``zipfile`` inflates past the size that is stated."""
    try:
        with archive.open(entry) as file:
            data = b"".join(iter(lambda: file.read(_CHUNK), b""))
    except (*DAMAGED, zlib.error) as error:
        raise refused(
            "archive_unreadable", f"{listed([entry.orig_filename])} is damaged: {told(error)}. Send it again."
        ) from error
    if len(data) != entry.file_size:
        raise refused("archive_unreadable", f"{listed([entry.orig_filename])} is cut off. Send the zip again.")
    return data


# --- tar -------------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """A stream that stops the reader once more has come out of it than the limits allow."""

    def __init__(self, stream: _Readable, packed: int, limits: IntakeLimits) -> None:
        self._stream = stream
        self._packed = packed
        self._limits = limits
        self._inflated = 0

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._inflated += len(chunk)
        _check_growth(self._inflated, self._packed, self._limits)
        return chunk


class _CountedTar(tarfile.TarFile):
    """A tar that counts its headers, those about others too."""

    headers = 0


class _CheckedHeader(tarfile.TarInfo):
    """A tar header that is refused before ``tarfile`` acts on it."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _CheckedHeader:
        if isinstance(tarfile, _CountedTar):
            tarfile.headers += 1
        return super().fromtarfile(tarfile)

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedHeader:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # neither the end mark nor the end of the file; tarfile would take it for the end
                raise refused(
                    "archive_unreadable", f"The tar is damaged: {told(error)}. Pack and send it again."
                ) from error
            raise
        if header.type not in (*_TAR_FILES, *_TAR_NOTES, tarfile.DIRTYPE):
            raise refused(
                "archive_unsafe_name",
                f"{listed([header.name])} is a link, a device or sparse. Pack regular files only.",
            )
        if header.size < 0 or (header.type in _TAR_NOTES and header.size > _TAR_NOTE_BYTES):
            raise refused("archive_unreadable", "A header of the tar has an impossible size. Pack and send it again.")
        return header


def _tar_members(path: Path, kind: ArchiveFormat, limits: IntakeLimits) -> Iterator[Member]:
    try:
        with path.open("rb") if kind == "tar" else gzip.open(path) as stream:
            counted = _Counted(stream, path.stat().st_size, limits)
            with _open_tar(counted) as archive:
                yield from _walk_tar(archive, limits)
            while counted.read(_CHUNK):  # to the end, where gzip has its checksum
                pass
    except _TAR_DAMAGED as error:
        raise refused(
            "archive_unreadable", f"The tar is damaged or cut off: {told(error)}. Pack and send it again."
        ) from error


def _open_tar(stream: _Counted) -> _CountedTar:
    # as a stream it never seeks, so no header can lead it back or past what is counted; its own records of 10 KB take a
    # bomb half as long again to inflate
    return _CountedTar.open(  # type: ignore[call-overload,no-any-return]
        fileobj=stream, mode="r|", bufsize=16 * _CHUNK, tarinfo=_CheckedHeader
    )


def _walk_tar(archive: _CountedTar, limits: IntakeLimits) -> Iterator[Member]:
    count = 0
    while (header := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
        count += 1
        if count > limits.archive_entries:
            _too_large(f"The tar holds more than {limits.archive_entries} entries.")
        if archive.headers > _HEADERS_PER_ENTRY * count + _FREE_HEADERS:
            _too_large(f"The tar holds {archive.headers} headers for {count} files.")
        parts = _safe_parts(header.name)
        if header.issparse():
            raise refused("archive_unsafe_name", f"{listed([header.name])} is sparse. Pack regular files only.")
        if header.isreg():
            _check_member_size(header.name, header.size, limits)
            yield Member(parts, functools.partial(_read_tar, archive, header))


def _read_tar(archive: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(header)
        return file.read() if file else b""  # a short file is a ReadError
    except _TAR_DAMAGED as error:
        raise refused(
            "archive_unreadable", f"{listed([header.name])} is damaged: {told(error)}. Send it again."
        ) from error
