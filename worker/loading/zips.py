"""Opening a zip that someone sent, without giving it all the memory that it asks for."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.loading.refusal import refused

_DIRECTORY_BYTES_PER_ENTRY = 160
_ENCRYPTED = 0x1
_MASKED = 0x2000

DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error)
"""What ``zipfile`` raises about bytes that are no sound zip."""


class _GuardedFile(io.FileIO):
    """A file that caps single reads and checks offsets: ``zipfile`` believes what a directory says of itself."""

    def __init__(self, path: Path, cap: int, code: str) -> None:
        super().__init__(path)
        self._cap = cap
        self._code = code

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._cap:
            raise refused(self._code, f"The zip's directory takes {size} bytes; at most {self._cap} are read.")
        return super().read(size) or b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and not 0 <= offset < 2**62:
            raise zipfile.BadZipFile("an offset lies outside the file")
        return super().seek(offset, whence)


@contextmanager
def opened_zip(path: Path, *, entries: int, code: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip of at most ``entries`` files, or refuse it with ``code``.

    Raises:
        RefusedError: Its directory is larger than so many entries need.
        zipfile.BadZipFile: It is damaged; see ``DAMAGED`` for what else a damaged one makes ``zipfile`` raise.
    """
    cap = max(entries * _DIRECTORY_BYTES_PER_ENTRY, 2**17)  # the end record alone is looked for in 64 KiB
    with _GuardedFile(path, cap, code) as file, zipfile.ZipFile(file) as archive:
        if len(archive.infolist()) > entries:
            raise refused(code, f"The zip holds {len(archive.infolist())} entries; at most {entries} are read.")
        yield archive


def is_encrypted(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry, or its place in the directory, needs a password."""
    return bool(entry.flag_bits & (_ENCRYPTED | _MASKED))
