"""The service's HTTP interface as Python calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import TypeAdapter

from jobs.models import Artifact, File, Job, JobId, JobPage, JobSpec, Purpose, Ready, Status
from medic_client.errors import (
    DamagedDownloadError,
    MalformedKeyError,
    MalformedUrlError,
    MedicApiError,
    UnreachableError,
    UnreadableAnswerError,
    WaitTimedOutError,
)

_CHUNK_BYTES = 1 << 20
_PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in all longer than a dead service takes to be back
_LONGEST_PAUSE_SECONDS = 30.0
_ARTIFACTS = TypeAdapter(tuple[Artifact, ...])
_INPUTS: Mapping[str, Purpose] = MappingProxyType(
    {"model": "model", "clean_data": "clean", "test_data": "test", "triggered_data": "triggered"}
)

Transferred = Callable[[str, int, int], None]
"""Told of every chunk: the file's name, bytes so far, bytes in all."""

Result = TypeVar("Result")


def ignore(name: str, done: int, total: int) -> None:
    """Tell nobody."""


class MedicClient:
    """Talks to one service.

    What may safely be sent twice is sent again, a few times, when the connection fails or the service asks for
    patience (503). Every call raises ``MedicApiError`` when the service refuses, ``UnreachableError`` when it does not
    answer and ``UnreadableAnswerError`` when the answer is not one of this service.

    Args:
        url: Where the service is, without ``/v1``.
        api_key: Sent as bearer token, without white space around it; None sends none.
        transport: Stands in for the network in tests.

    Raises:
        MalformedKeyError: ``api_key`` has characters that no key has.
        MalformedUrlError: ``url`` is none, or not one of HTTP.
    """

    def __init__(self, url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> None:
        key = (api_key or "").strip()
        if not re.fullmatch("[!-~]*", key):  # what sends headers would quote all of it
            raise MalformedKeyError
        try:
            scheme = httpx.URL(url).scheme
        except httpx.InvalidURL as error:
            raise MalformedUrlError(url, str(error)) from error
        if scheme not in ("http", "https"):
            raise MalformedUrlError(url, "it begins with neither http:// nor https://")
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(60.0, connect=5.0),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def upload(self, path: Path, purpose: Purpose, *, progress: Transferred = ignore) -> File:
        """Send a file in bounded memory; the service checks its digest on arrival."""
        size = path.stat().st_size
        headers = {
            "Content-Length": str(size),
            "Content-Type": "application/octet-stream",
            "Content-Digest": f"sha-256=:{base64.b64encode(_sha256(path)).decode()}:",
        }

        def put() -> httpx.Response:
            return self._send(
                "PUT",
                "/v1/files",
                params={"purpose": purpose, "filename": path.name},
                headers=headers,
                content=_chunks(path, size, progress),
            )

        return _read(File.model_validate_json, _patiently(put))

    def create_job(self, spec: JobSpec, *, idempotency_key: str | None = None) -> Job:
        """Start a job on uploaded files: one, however often the request has to be sent.

        Args:
            spec: What to do.
            idempotency_key: Of your choice; a call under the same one within a day returns the same job. By default a
                new one, under which this call alone repeats itself.
        """
        key = idempotency_key or str(uuid.uuid4())
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        content = spec.model_dump_json().encode()
        response = _patiently(lambda: self._send("POST", "/v1/jobs", headers=headers, content=content))
        return _read(Job.model_validate_json, response)

    def sanitize(self, spec: JobSpec, *, progress: Transferred = ignore) -> Job:
        """Upload files and start a job on them.

        Args:
            spec: A job whose file ids are paths of local files; the ids that these get upon upload take their place.
            progress: Told of every chunk that is sent.
        """
        uploaded = {}
        for field, purpose in _INPUTS.items():
            if part := getattr(spec, field):
                file = self.upload(Path(part.file_id), purpose, progress=progress)
                uploaded[field] = part.model_copy(update={"file_id": file.id})
        return self.create_job(spec.model_copy(update=uploaded))

    def ready(self) -> Ready:
        """Ask whether jobs are accepted, and in what sandbox workers read them."""
        return _read(Ready.model_validate_json, self._send("GET", "/readyz"))

    def job(self, job_id: JobId) -> Job:
        """Return a job as it is now."""
        return _read(Job.model_validate_json, self._get(f"/v1/jobs/{job_id}"))

    def jobs(
        self,
        *,
        status: Status | None = None,
        model_sha256: str | None = None,
        metadata: Mapping[str, str] = MappingProxyType({}),
        limit: int = 50,
        after: str | None = None,
    ) -> JobPage:
        """Return one page of jobs, newest first; all given conditions hold."""
        conditions = {"status": status, "model_sha256": model_sha256, "limit": str(limit), "after": after}
        conditions |= {f"metadata[{key}]": value for key, value in metadata.items()}
        params = {key: value for key, value in conditions.items() if value is not None}
        return _read(JobPage.model_validate_json, self._get("/v1/jobs", params=params))

    def watch(self, job_id: JobId, *, timeout_seconds: float | None = None) -> Iterator[Job]:
        """Yield the job again and again, as often as the service asks for, the last time when it has ended.

        Raises:
            WaitTimedOutError: It had not ended after ``timeout_seconds``.
        """
        began = time.monotonic()
        while True:
            response = self._get(f"/v1/jobs/{job_id}")
            job = _read(Job.model_validate_json, response)
            yield job
            if job.terminal:
                return
            pause = _retry_after_seconds(response) or 1.0
            if timeout_seconds is not None:
                left = began + timeout_seconds - time.monotonic()
                if left <= 0:
                    raise WaitTimedOutError(job, timeout_seconds)
                pause = min(pause, left)
            time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))

    def cancel(self, job_id: JobId) -> Job:
        """Ask for a job's end; it is ``cancelled`` once its process is dead."""
        return _read(Job.model_validate_json, self._send("POST", f"/v1/jobs/{job_id}/cancel"))

    def delete(self, job_id: JobId) -> None:
        """Forget a job that has ended, with its artifacts."""
        is_repeated = False

        def delete() -> None:
            nonlocal is_repeated
            may_be_done, is_repeated = is_repeated, True
            try:
                _read(_nothing, self._send("DELETE", f"/v1/jobs/{job_id}"))
            except MedicApiError as error:
                if not (may_be_done and error.problem.get("code") == "unknown_job"):
                    raise

        _patiently(delete)

    def artifacts(self, job_id: JobId) -> tuple[Artifact, ...]:
        """Return what a job has made."""
        return _read(_ARTIFACTS.validate_json, self._get(f"/v1/jobs/{job_id}/artifacts"))

    def download(self, job_id: JobId, artifact: Artifact, folder: Path, *, progress: Transferred = ignore) -> Path:
        """Fetch an artifact into ``folder`` under its name, which appears only once every byte is proved by the digest.

        A download that broke off, in this call or an earlier one, goes on where it was.

        Raises:
            DamagedDownloadError: The bytes are not those that the service recorded, or the name is no plain file name.
        """
        if artifact.name in {"", ".", ".."} or Path(artifact.name).name != artifact.name:
            raise DamagedDownloadError(f"{artifact.name!r} is no name of a file")
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{artifact.name}.{artifact.sha256[:16]}.part"
        _patiently(lambda: self._fetch_rest(f"/v1/jobs/{job_id}/artifacts/{artifact.name}", artifact, part, progress))
        if _sha256(part).hex() != artifact.sha256:
            part.unlink()
            raise DamagedDownloadError(f"{artifact.name} does not have the digest that the service recorded for it")
        return part.replace(folder / artifact.name)

    def methods(self) -> Any:
        """Return every removal method with the JSON schema of its settings."""
        return _read(json.loads, self._get("/v1/methods"))

    def architectures(self) -> Any:
        """Return every architecture that a model may have."""
        return _read(json.loads, self._get("/v1/architectures"))

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> httpx.Response:
        return _patiently(lambda: self._send("GET", path, params=params))

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        with _translated():
            response = self._http.request(method, path, params=params, headers=headers, content=content)
        return _accepted(response)

    def _fetch_rest(self, path: str, artifact: Artifact, part: Path, progress: Transferred) -> None:
        """Append to ``part`` what it lacks, or begin again where the service does not continue it."""
        have = part.stat().st_size if part.exists() else 0
        if have == artifact.bytes and part.exists():
            return
        headers = {"Accept-Encoding": "identity"}
        if 0 < have < artifact.bytes:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{artifact.sha256}"'}
        with _translated(), self._http.stream("GET", path, headers=headers) as response:
            if response.is_error:
                response.read()
            _accepted(response)
            with part.open("ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    progress(artifact.name, file.tell(), artifact.bytes)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise UnreachableError(f"no answer: {error or type(error).__name__}") from error


def _patiently(attempt: Callable[[], Result]) -> Result:
    """Try again, a few times, what failed for want of an answer or was put off for so many seconds.

    What waits for an answer to the same request is tried until there is one: the service holds a key for a minute.
    """
    pauses = iter(_PAUSES_SECONDS)
    while True:
        try:
            return attempt()
        except UnreachableError:
            pause = next(pauses, None)
            if pause is None:
                raise
        except MedicApiError as error:
            is_in_flight = error.problem.get("code") == "request_in_flight"
            if error.retry_after_seconds is None or not (is_in_flight or next(pauses, None)):
                raise
            pause = min(error.retry_after_seconds, _LONGEST_PAUSE_SECONDS)
        time.sleep(pause)


def _accepted(response: httpx.Response) -> httpx.Response:
    """Return a response that reports success; raise on any other."""
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):  # not the service but something before it
        problem = {"title": response.reason_phrase, "detail": response.text[:200]}
    raise MedicApiError(response.status_code, problem, _retry_after_seconds(response))


def _read(reader: Callable[[bytes], Result], response: httpx.Response) -> Result:
    """Return what an answer says.

    Raises:
        UnreadableAnswerError: It says nothing that this service would.
    """
    try:
        return reader(response.content)
    except ValueError as error:  # pydantic's is one
        kind = response.headers.get("Content-Type", "of no type")
        raise UnreadableAnswerError(response.url.path, response.status_code, kind) from error


def _nothing(content: bytes) -> None:
    if content:
        raise ValueError


def _retry_after_seconds(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _chunks(path: Path, size: int, progress: Transferred) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            progress(path.name, file.tell(), size)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
