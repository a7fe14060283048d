"""Reading request bodies: bounded, and strict about what JSON leaves open."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from types import UnionType

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from api.errors import RequestRefusedError, pointer, problems_of
from jobs.artifacts import NO_ROOM
from jobs.errors import ArtifactTooLargeError, StorageFullError, StorageQuotaError
from jobs.models import JobSpec, Problem

JSON_LIMIT_BYTES = 1024**2
MOST_PARTS = 16
AROUND_FILES_BYTES = 2 * JSON_LIMIT_BYTES
"""What a form may hold beside its files: a spec, and the heads of its parts."""

_UNREPRESENTABLE = re.compile("[\0\ud800-\udfff]")


async def bounded(
    request: Request, limit_bytes: int, advice: str = "", *, quota_bytes: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raises:
        ArtifactTooLargeError: It is longer than ``limit_bytes``; before any of it is read where Content-Length says so.
        StorageQuotaError: The same for ``quota_bytes``, what the tenant may still store.
    """

    def check(length: int) -> None:
        if length > limit_bytes:
            raise ArtifactTooLargeError(f"the body is larger than the limit of {limit_bytes} bytes{advice}")
        if quota_bytes is not None and length > quota_bytes:
            raise StorageQuotaError(f"the body is more than the {quota_bytes} bytes that you may still store")

    received = 0
    check(_announced_length(request))
    async for chunk in request.stream():
        received += len(chunk)
        check(received)
        yield chunk


def _announced_length(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch("[0-9]{1,20}", length) else 0


async def posted_spec(request: Request) -> JobSpec:
    """Read a job's spec from a JSON body."""
    text = b"".join([chunk async for chunk in bounded(request, JSON_LIMIT_BYTES)])
    return await run_in_threadpool(lambda: parse_spec(parse_json(text)))


def parse_spec(value: object) -> JobSpec:
    """Make a spec of parsed JSON.

    Raises:
        RequestRefusedError: With every reason why it is none.
    """
    problems = list(_unrepresentable(value))
    if not problems:
        try:
            return JobSpec.model_validate_json(json.dumps(value), strict=True)  # of types, too: true is not 1
        except ValidationError as error:
            problems = list(problems_of(error, value))
    raise RequestRefusedError(422, "invalid_spec", "the spec of the job is not valid", *problems)


def parse_json(text: bytes) -> object:
    """Parse JSON in UTF-8.

    Raises:
        RequestRefusedError: It is none.
    """
    try:
        value: object = json.loads(text.decode(), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestRefusedError(400, "malformed_json", f"not JSON in UTF-8: {reason}") from error
    return value


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse what some readers take the first of, and others the last."""
    read: dict[str, object] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"{name[:100]!r} is there twice")
        read[name] = value
    return read


def _unrepresentable(value: object) -> Iterator[Problem]:
    """Find what Python's JSON lets through and neither JSON nor the database can hold."""
    waiting: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*place, key), item) for key, content in value.items() for item in (key, content)]
        elif isinstance(value, list):
            waiting += [((*place, index), item) for index, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield Problem(code="finite_number", detail="must be a finite number", pointer=pointer(place))
        elif isinstance(value, str) and _UNREPRESENTABLE.search(value):
            yield Problem(code="invalid_text", detail="has a NUL or half a character", pointer=pointer(place))


@asynccontextmanager
async def multipart(request: Request, limit_bytes: int, *, quota_bytes: int | None = None) -> AsyncIterator[FormData]:
    """Read a multipart form; its files lie in temporary files until the context ends.

    A form is more than its files: ``quota_bytes`` is passed by as much as the rest of a form may take.

    Raises:
        RequestRefusedError: It is none.
        ArtifactTooLargeError: It is longer than ``limit_bytes``.
        StorageQuotaError: Its files cannot fit into ``quota_bytes``.
        StorageFullError: The disk has no room.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise RequestRefusedError(415, "unsupported_media_type", "send multipart/form-data, with text in UTF-8")
    most = None if quota_bytes is None else quota_bytes + AROUND_FILES_BYTES
    body = bounded(request, limit_bytes, "; send larger files with PUT /v1/files", quota_bytes=most)
    parser = _WholeForm(request.headers, body, max_files=MOST_PARTS, max_fields=MOST_PARTS)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "maximum size" in error.message:
            raise ArtifactTooLargeError(f"a part that is no file is larger than {JSON_LIMIT_BYTES} bytes") from error
        raise RequestRefusedError(400, "malformed_multipart", error.message) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFullError("no room left on the disk; nothing was kept") from error
        raise
    try:
        yield form
    finally:
        await form.close()


class _WholeForm(MultiPartParser):
    """Refuses a form without its closing boundary: the part that breaks off would be left out without a word.

    And text that is not UTF-8, which would be read as Latin-1.
    """

    _has_ended = False

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError as error:
                raise MultiPartException(f"a part that is no file is not UTF-8: {error.reason}") from error
        super().on_part_end()

    def on_end(self) -> None:
        self._has_ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._has_ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("the form breaks off before its closing boundary")
        return form


def problems_in_form(
    form: FormData, required: Mapping[str, type | UnionType], optional: Mapping[str, type | UnionType]
) -> Iterator[Problem]:
    """Compare the parts of a form with what is asked for: the type of each part by its name."""
    known = {**required, **optional}
    for name in required:
        if name not in form:
            yield Problem(code="missing", detail="the part is missing", pointer=pointer([name]))
    for name, value in form.multi_items():
        if name not in known:
            yield Problem(code="extra_forbidden", detail="no such part is known", pointer=pointer([name]))
        elif len(form.getlist(name)) > 1:
            yield Problem(code="repeated", detail="the part may be there only once", pointer=pointer([name]))
        elif not isinstance(value, known[name]):
            wanted = "text" if known[name] is str else "a file: give it a filename"
            yield Problem(code="wrong_part", detail=f"the part must be {wanted}", pointer=pointer([name]))
