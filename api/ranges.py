"""Which part of a representation a request asks for (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from api.errors import RequestRefusedError


def matches(header: str | None, etag: str) -> bool:
    """Say whether If-None-Match names ``etag``, by weak comparison."""
    named = [name.strip().removeprefix("W/") for name in (header or "").split(",")]
    return etag in named or named == ["*"]


def byte_range(header: str | None, size: int) -> range | None:
    """Read a Range header.

    Returns:
        The positions asked for. None for everything: no header, another unit, several ranges, or none that can be read.

    Raises:
        RequestRefusedError: 416; no byte of ``size`` lies in the range.
    """
    given = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header or "", re.IGNORECASE)
    if given is None or given[1] + given[2] == "":
        return None
    first, last = given[1], given[2]
    if first and last and int(first) > int(last):
        return None
    asked = range(int(first), min(int(last or size), size - 1) + 1) if first else range(max(size - int(last), 0), size)
    if not asked:
        detail = f"the range lies outside the {size} bytes"
        raise RequestRefusedError(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return asked
