"""From the wire into the artifact store, in bounded memory."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import AsyncIterator, Sequence

from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from starlette.datastructures import UploadFile

from api.errors import RequestRefusedError
from jobs.artifacts import ArtifactStore, Blob, BlobWriter
from jobs.errors import DigestMismatchError

BUFFER_BYTES = 1024**2

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # bidirectional marks are among Cf; surrogates are no text


async def store(chunks: AsyncIterator[bytes], artifacts: ArtifactStore, *, sha256: bytes | None = None) -> Blob:
    """Write chunks into the store. Disk and hash keep a thread busy, never the event loop.

    Args:
        chunks: Of any size; a thread takes about 1 MiB of them at a time.
        artifacts: Where to.
        sha256: What the bytes should hash to, where the sender announced it.

    Raises:
        DigestMismatchError: They hash to something else; nothing was kept.
        StorageFullError: The disk has no room; nothing was kept.
    """
    async with contextmanager_in_threadpool(artifacts.writer()) as writer:
        async for some in _gathered(chunks):
            await run_in_threadpool(_write_all, writer, some)
        if sha256 is not None and writer.sha256() != sha256.hex():
            raise DigestMismatchError(f"Content-Digest does not match: the bytes received hash to {writer.sha256()}")
        return await run_in_threadpool(writer.commit)


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    some, size = [], 0
    async for chunk in chunks:
        some.append(chunk)
        size += len(chunk)
        if size >= BUFFER_BYTES:
            yield some
            some, size = [], 0
    yield some


def _write_all(writer: BlobWriter, chunks: list[bytes]) -> None:
    for chunk in chunks:
        writer.write(chunk)


async def chunks_of(part: UploadFile) -> AsyncIterator[bytes]:
    """Read a part of a form piece by piece."""
    while chunk := await part.read(BUFFER_BYTES):
        yield chunk


def announced_sha256(fields: Sequence[str]) -> bytes | None:
    """Read the SHA-256 of Content-Digest (RFC 9530), None when the header was not sent; parameters say nothing to us.

    Raises:
        RequestRefusedError: The header cannot be read, or announces only digests that are not checked here.
    """
    members = dict(member.strip().partition("=")[::2] for field in fields for member in field.split(","))
    if not members:
        return None
    encoded = re.fullmatch(r":([A-Za-z0-9+/]{43}=):", members.get("sha-256", "").partition(";")[0].rstrip())
    if encoded is None:
        detail = "Content-Digest must read sha-256=:<base64 of 32 bytes>:"
        raise RequestRefusedError(400, "malformed_digest", detail)
    return base64.b64decode(encoded[1])


def displayable(filename: str) -> str:
    """Make a name that is safe to show: NFC, without control and bidirectional characters, at most 255 characters."""
    shown = "".join(character for character in filename if unicodedata.category(character) not in _HIDDEN)
    return unicodedata.normalize("NFC", shown)[:255]
