from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.models import Artifact, DataSpec, Job, JobId, JobSpec, ModelSpec
from medic_client import client as client_module
from medic_client.client import MedicClient
from medic_client.errors import (
    DamagedDownloadError,
    MalformedKeyError,
    MalformedUrlError,
    MedicApiError,
    UnreachableError,
    UnreadableAnswerError,
    WaitTimedOutError,
)
from tests.medic_client.fake_service import file_json, job_json

CONTENT = bytes(range(256)) * 5000
ARTIFACT = Artifact(
    name="model.safetensors", sha256=hashlib.sha256(CONTENT).hexdigest(), bytes=len(CONTENT), media_type="x/y"
)


pytestmark = pytest.mark.usefixtures("pauses")


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> MedicClient:
    return MedicClient("http://service", "mdk_a_b", transport=httpx.MockTransport(handler))


def failing_first(
    times: int, then: Callable[[httpx.Request], httpx.Response], failure: Any
) -> tuple[MedicClient, list[str]]:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        if len(seen) > times:
            return then(request)
        if isinstance(failure, Exception):
            raise failure
        return failure

    return client_of(handler), seen


def test_upload_streams_the_bytes_with_their_digest_and_length_and_tells_the_progress(tmp_path):
    path = tmp_path / "a b&c.pth"
    path.write_bytes(CONTENT)
    seen: list[httpx.Request] = []
    told: list[tuple[str, int, int]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json=file_json(request))

    file = client_of(handler).upload(path, "model", progress=lambda *each: told.append(each))
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert file.filename == "a b&c.pth"
    (request,) = seen
    assert request.method == "PUT"
    assert request.headers["Authorization"] == "Bearer mdk_a_b"
    assert request.headers["Content-Length"] == str(len(CONTENT))
    assert "Transfer-Encoding" not in request.headers
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert request.headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert told[-1] == (path.name, len(CONTENT), len(CONTENT))


def test_sanitize_uploads_what_the_spec_names_by_path_and_starts_the_job_on_the_ids(tmp_path):
    for name in ("suspect.pth", "clean.zip"):
        (tmp_path / name).write_bytes(name.encode())
    asked: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(201, json=file_json(request))
        asked.append(json.loads(request.read()))
        return httpx.Response(202, json=job_json())

    spec = JobSpec(
        model=ModelSpec(file_id=str(tmp_path / "suspect.pth"), architecture="medic/wide_resnet16_1"),
        clean_data=DataSpec(file_id=str(tmp_path / "clean.zip")),
    )
    assert client_of(handler).sanitize(spec).id == "job_1"
    (sent,) = asked
    assert sent["model"]["file_id"] == "file_model"
    assert sent["clean_data"]["file_id"] == "file_clean"
    assert JobSpec.model_validate(sent).removal == spec.removal


LOST = httpx.ConnectError("refused")
BUSY = httpx.Response(503, headers={"Retry-After": "3"}, json={"code": "busy"})


@pytest.mark.parametrize("failure", [LOST, httpx.ReadTimeout("slow"), BUSY], ids=["lost", "slow", "busy"])
def test_what_may_be_repeated_is_after_a_lost_connection_or_when_asked_for_patience(failure, pauses):
    client, seen = failing_first(2, lambda _: httpx.Response(200, json=job_json()), failure)
    assert client.job(JobId("job_1")).id == "job_1"
    assert len(seen) == 3
    assert pauses == ([3.0, 3.0] if failure is BUSY else [0.25, 0.5])


def test_an_answer_that_is_still_being_made_is_waited_for(pauses):
    flying = httpx.Response(409, headers={"Retry-After": "1"}, json={"code": "request_in_flight"})
    client, seen = failing_first(59, lambda _: httpx.Response(202, json=job_json()), flying)
    spec = JobSpec(model=ModelSpec(file_id="file_1", architecture="medic/x"), clean_data=DataSpec(file_id="file_2"))
    assert client.create_job(spec).id == "job_1"
    assert (len(seen), pauses) == (60, [1.0] * 59)  # the service holds a key for so long that nobody answers


UNKNOWN = httpx.Response(404, json={"code": "unknown_job"})


@pytest.mark.parametrize("failure", [LOST, httpx.ReadTimeout("slow"), BUSY], ids=["lost", "slow", "busy"])
def test_a_job_that_is_gone_when_its_deletion_is_repeated_is_deleted(failure):
    client, seen = failing_first(1, lambda _: UNKNOWN, failure)
    client.delete(JobId("job_1"))
    assert seen == ["DELETE", "DELETE"]


@pytest.mark.parametrize("failure", [None, LOST], ids=["at once", "repeated"])
@pytest.mark.parametrize("answer", [UNKNOWN, httpx.Response(404), httpx.Response(409, json={"code": "not_finished"})])
def test_a_deletion_is_refused_unless_its_own_repetition_found_nothing(failure, answer):
    client, _ = failing_first(1 if failure else 0, lambda _: answer, failure)
    if failure and answer is UNKNOWN:
        client.delete(JobId("job_1"))
    with pytest.raises(MedicApiError):  # of two calls the second repeats nothing
        client.delete(JobId("job_1"))


@pytest.mark.parametrize("space", ["\n", "\r\n", " ", "\t"])
def test_white_space_around_a_key_is_no_part_of_it(space):
    sent: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return httpx.Response(200, json=job_json())

    MedicClient("http://service", f"{space}mdk_a_b{space}", transport=httpx.MockTransport(handler)).job(JobId("job_1"))
    assert sent == ["Bearer mdk_a_b"]


@pytest.mark.parametrize("key", ["mdk_…", "mdk_a hidden", "mdk_a\nhidden", "mdk_a\x00hidden", "mdk_a\x7fhidden"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key):
    with pytest.raises(MalformedKeyError, match="MEDIC_API_KEY") as refused:
        MedicClient("http://service", key)
    assert not any(shown in repr(refused.value) for shown in ("mdk_a", "…", "hidden"))


@pytest.mark.parametrize("url", ["http://service:port", "service:8000", "//service", "ftp://service", " "])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(MalformedUrlError, match="MEDIC_URL"):
        MedicClient(url, None)


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"", b"\xff\xfe"], ids=["a page", "nothing", "no text"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.job(JobId("job_1")),
        lambda client: client.jobs(),
        lambda client: next(client.watch(JobId("job_1"))),
        lambda client: client.cancel(JobId("job_1")),
        lambda client: client.artifacts(JobId("job_1")),
        lambda client: client.ready(),
        lambda client: client.methods(),
        lambda client: client.architectures(),
        lambda client: client.upload(Path(__file__), "model"),
        lambda client: client.create_job(
            JobSpec(model=ModelSpec(file_id="1", architecture="medic/x"), clean_data=DataSpec(file_id="2"))
        ),
    ],
    ids=["job", "jobs", "watch", "cancel", "artifacts", "ready", "methods", "architectures", "upload", "create_job"],
)
def test_success_that_is_not_of_this_service_is_an_error_that_says_where_to_look(ask, body):
    client = client_of(lambda _: httpx.Response(200, content=body, headers={"Content-Type": "text/html"}))
    with pytest.raises(UnreadableAnswerError, match=r"200, text/html.*check MEDIC_URL"):
        ask(client)


def test_patience_ends():
    client, seen = failing_first(1000, lambda _: httpx.Response(200), LOST)
    with pytest.raises(UnreachableError):
        client.job(JobId("job_1"))
    assert 2 <= len(seen) <= 10
    client, seen = failing_first(1000, lambda _: httpx.Response(200), BUSY)
    with pytest.raises(MedicApiError):
        client.job(JobId("job_1"))
    assert 2 <= len(seen) <= 10


@pytest.mark.parametrize("failure", [LOST, BUSY], ids=["lost", "busy"])
@pytest.mark.usefixtures("pauses")
def test_a_job_is_asked_for_under_one_key_however_often(failure):
    keys = []

    def answer(request):
        keys.append(request.headers["idempotency-key"])
        if len(keys) < 3:
            if isinstance(failure, Exception):
                raise failure
            return failure
        return httpx.Response(202, json=job_json())

    client = client_of(answer)
    spec = JobSpec(model=ModelSpec(file_id="file_1", architecture="medic/x"), clean_data=DataSpec(file_id="file_2"))
    assert client.create_job(spec).id == "job_1"
    assert (len(keys), len(set(keys))) == (3, 1)
    client.create_job(spec)
    assert len(set(keys)) == 2


def test_a_refusal_carries_its_problem_document_and_names_every_problem():
    problem = {
        "code": "unknown_file",
        "detail": "two files are unknown",
        "errors": [{"pointer": "/model/file_id", "detail": "no file_1"}, {"pointer": None, "detail": "no file_2"}],
    }
    client = client_of(lambda _: httpx.Response(422, json=problem))
    with pytest.raises(MedicApiError) as refused:
        client.job(JobId("job_1"))
    assert refused.value.status == 422
    assert refused.value.problem == problem
    for said in ("unknown_file", "two files are unknown", "/model/file_id: no file_1", "no file_2"):
        assert said in str(refused.value)


def test_a_refusal_by_something_else_than_the_service_is_put_into_a_problem():
    client = client_of(lambda _: httpx.Response(502, text="<html>bad gateway</html>"))
    with pytest.raises(MedicApiError, match="bad gateway") as refused:
        client.job(JobId("job_1"))
    assert refused.value.status == 502


def test_watch_yields_until_the_job_has_ended_and_pauses_as_the_service_asks(pauses):
    answers = iter(
        [
            httpx.Response(200, json=job_json("queued"), headers={"Retry-After": "2"}),
            httpx.Response(200, json=job_json("running"), headers={"Retry-After": "7"}),
            httpx.Response(200, json=job_json("succeeded")),
        ]
    )
    client = client_of(lambda _: next(answers))
    assert [job.status for job in client.watch(JobId("job_1"))] == ["queued", "running", "succeeded"]
    assert pauses == [2.0, 7.0]


def test_watch_ends_when_patience_is_over_and_says_what_was_last_seen(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(client_module.time, "monotonic", lambda: next(clock))
    seen = client_of(lambda _: httpx.Response(200, json=job_json("running"))).watch(JobId("job_1"), timeout_seconds=10)
    with pytest.raises(WaitTimedOutError) as over:
        list(seen)
    assert over.value.job.status == "running"


def test_listing_sends_every_condition_and_no_other():
    asked: list[dict[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return httpx.Response(200, json={"jobs": [job_json()], "next": "cursor"})

    page = client_of(handler).jobs(status="failed", metadata={"git": "a&b"}, limit=2)
    assert page.next == "cursor"
    assert asked == [{"status": "failed", "metadata[git]": "a&b", "limit": "2"}]


class ArtifactServer:
    """Answers Range and If-Range; breaks off after ``breaks_off_after`` bytes, once."""

    def __init__(self, content: bytes = CONTENT, *, breaks_off_after: int | None = None, ranges: bool = True) -> None:
        self.content, self.left, self.ranges = content, breaks_off_after, ranges
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        wanted = request.headers.get("Range")
        if wanted and self.ranges and request.headers.get("If-Range") == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            return httpx.Response(206, content=self._sent(self.content[start:]), headers={"ETag": etag})
        return httpx.Response(200, content=self._sent(self.content), headers={"ETag": etag})

    def _sent(self, content: bytes) -> Iterator[bytes]:
        breaks_off, self.left = self.left, None
        yield content[:breaks_off]
        if breaks_off is not None:
            raise httpx.ReadError("gone")


def test_download_puts_the_bytes_under_the_artifacts_name_and_leaves_nothing_else(tmp_path):
    path = client_of(ArtifactServer()).download(JobId("job_1"), ARTIFACT, tmp_path / "new")
    assert path == tmp_path / "new" / "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on_where_it_was_or_begins_again_where_there_are_no_ranges(tmp_path, ranges):
    server = ArtifactServer(breaks_off_after=1000, ranges=ranges)
    assert client_of(server).download(JobId("job_1"), ARTIFACT, tmp_path).read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=1000-"]


def test_a_later_call_takes_up_what_an_earlier_one_left(tmp_path):
    broken = ArtifactServer(breaks_off_after=1000)

    def first_then_nothing(request: httpx.Request) -> httpx.Response:
        if broken.requests:
            raise httpx.ConnectError("down")
        return broken(request)

    with pytest.raises(UnreachableError):
        client_of(first_then_nothing).download(JobId("job_1"), ARTIFACT, tmp_path)
    assert not (tmp_path / ARTIFACT.name).exists()
    server = ArtifactServer()
    assert client_of(server).download(JobId("job_1"), ARTIFACT, tmp_path).read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.requests] == ["bytes=1000-"]


def test_bytes_that_are_not_those_on_record_are_refused_and_not_kept(tmp_path):
    with pytest.raises(DamagedDownloadError):
        client_of(ArtifactServer(b"x" * len(CONTENT))).download(JobId("job_1"), ARTIFACT, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "", "/etc/passwd"])
def test_an_artifact_name_never_leads_out_of_the_folder(tmp_path, name):
    server = ArtifactServer()
    with pytest.raises(DamagedDownloadError):
        client_of(server).download(JobId("job_1"), ARTIFACT.model_copy(update={"name": name}), tmp_path)
    assert server.requests == []


def test_each_call_asks_the_route_that_the_contract_names():
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "DELETE":
            return httpx.Response(204)
        if request.url.path.endswith("/artifacts"):
            return httpx.Response(200, json=[ARTIFACT.model_dump()])
        return httpx.Response(200, json=job_json("cancelling"))

    client = client_of(handler)
    assert client.cancel(JobId("job_1")).status == "cancelling"
    client.delete(JobId("job_1"))
    assert client.artifacts(JobId("job_1")) == (ARTIFACT,)
    client.methods()
    client.architectures()
    assert asked == [
        "POST /v1/jobs/job_1/cancel",
        "DELETE /v1/jobs/job_1",
        "GET /v1/jobs/job_1/artifacts",
        "GET /v1/methods",
        "GET /v1/architectures",
    ]


def test_a_job_read_from_the_service_prints_as_the_service_wrote_it():
    failure = {"code": "nan_loss", "class": "user", "message": "m", "retryable": False, "pointer": None, "problems": []}
    job = Job.model_validate(job_json("failed", error=failure))
    printed = json.loads(job.model_dump_json())
    assert printed["error"] == failure
    assert printed["terminal"] is True
    assert Job.model_validate(printed) == job


def test_a_missing_file_is_found_before_anything_is_sent(tmp_path):
    server = ArtifactServer()
    with pytest.raises(FileNotFoundError):
        client_of(server).upload(Path(tmp_path / "absent"), "model")
    assert server.requests == []
