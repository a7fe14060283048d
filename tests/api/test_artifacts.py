"""An artifact's bytes come as they were recorded, whole or in any part."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.errors import RequestRefusedError
from api.ranges import byte_range
from jobs.artifacts import FolderStore
from jobs.store import JobStore
from tests.api.harness import problem
from tests.jobs.samples import change_row

CONTENT = bytes(number * 7 % 251 for number in range(600_000))  # more than two chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'


@pytest.fixture
def job(queued: str, finish: Callable[..., None]) -> str:
    """The path of a job with an artifact of some size, and one of none."""
    finish(queued, weights=CONTENT, empty=b"")
    return f"/v1/jobs/{queued}"


def test_artifacts_are_listed_with_their_digests(client: httpx.Client, job: str) -> None:
    listed = {artifact["name"]: artifact for artifact in client.get(f"{job}/artifacts").json()}
    assert listed.keys() == {"weights", "empty"}
    assert (listed["weights"]["sha256"], listed["weights"]["bytes"]) == (SHA256, len(CONTENT))


def test_a_download_carries_all_that_checks_it(client: httpx.Client, job: str) -> None:
    answer = client.get(f"{job}/artifacts/weights")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == ETAG
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-type"] == "application/x-made"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''weights"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["weights", "empty"])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=1-2"}])
def test_head_says_what_get_would_and_sends_nothing(
    client: httpx.Client, job: str, name: str, headers: dict[str, str]
) -> None:
    head, get = client.head(f"{job}/artifacts/{name}", headers=headers), client.get(f"{job}/artifacts/{name}")
    assert (head.status_code, head.content) == (200, b"")
    unlike = {"x-request-id"}
    assert {key: head.headers[key] for key in head.headers if key not in unlike} == {
        key: get.headers[key] for key in get.headers if key not in unlike
    }
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_artifact_that_is_known_is_not_sent_again(client: httpx.Client, job: str, method: str) -> None:
    for named in (ETAG, f"W/{ETAG}", f'"a", {ETAG}', "*"):
        answer = client.request(
            method, f"{job}/artifacts/weights", headers={"If-None-Match": named, "Range": "bytes=0-1"}
        )
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == ETAG


def bounds(size: int) -> st.SearchStrategy[tuple[int | None, int | None]]:
    """First and last position as a client may write them, the last one also beyond the end."""
    both = st.tuples(st.integers(0, size - 1), st.integers(0, 2 * size)).filter(lambda pair: pair[0] <= pair[1])
    return both | st.tuples(st.integers(0, size - 1), st.none()) | st.tuples(st.none(), st.integers(1, 2 * size))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(bounds(len(CONTENT)))
def test_any_range_gives_exactly_its_bytes(
    client: httpx.Client, job: str, asked: tuple[int | None, int | None]
) -> None:
    first, last = asked
    wanted = CONTENT[-(last or 0) :] if first is None else CONTENT[first : len(CONTENT) if last is None else last + 1]
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    answer = client.get(f"{job}/artifacts/weights", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, wanted)
    start = len(CONTENT) - len(wanted) if first is None else first
    end = start + len(wanted) - 1
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(len(wanted))
    assert answer.headers["etag"] == ETAG


@given(st.integers(1, 1000), st.data())
def test_adjoining_ranges_make_the_whole(size: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=5))) if size > 1 else []
    edges = [0, *cuts, size]
    parts = [byte_range(f"bytes={start}-{end - 1}", size) for start, end in pairwise(edges)]
    assert [position for part in parts for position in part or ()] == list(range(size))


@given(st.text(max_size=30) | st.from_regex(r"bytes=[0-9, -]{0,30}", fullmatch=True), st.integers(0, 100))
def test_no_range_header_reaches_beyond_the_end(header: str, size: int) -> None:
    positions: range | None = None
    with suppress(RequestRefusedError):
        positions = byte_range(header, size)
    assert positions is None or (len(positions) > 0 and set(positions) <= set(range(size)))


@pytest.mark.parametrize("header", ["bytes=600000-", "bytes=600000-600001", "bytes=-0", "bytes=999999999999-"])
def test_a_range_outside_is_416_with_the_size(client: httpx.Client, job: str, header: str) -> None:
    answer = client.get(f"{job}/artifacts/weights", headers={"Range": header})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */600000"


def test_no_range_lies_in_an_empty_artifact(client: httpx.Client, job: str) -> None:
    assert client.get(f"{job}/artifacts/empty").content == b""
    problem(client.get(f"{job}/artifacts/empty", headers={"Range": "bytes=0-0"}), 416)


@pytest.mark.parametrize(
    "header",
    ["bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=+1-2", f"bytes={'9' * 5000}-"],
)
def test_a_range_that_is_not_understood_is_ignored(client: httpx.Client, job: str, header: str) -> None:
    answer = client.get(f"{job}/artifacts/weights", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "content-range" not in answer.headers


def test_a_range_of_another_version_gives_the_whole(client: httpx.Client, job: str) -> None:
    def status(if_range: str) -> int:
        headers = {"Range": "bytes=0-1", "If-Range": if_range}
        return client.get(f"{job}/artifacts/weights", headers=headers).status_code

    assert status(ETAG) == 206
    assert [status(other) for other in ('"other"', f"W/{ETAG}", "Sat, 01 Jan 2000 00:00:00 GMT")] == [200] * 3


@pytest.mark.parametrize("name", ["nothing", "..%2Fweights", "%00", "weights%00"])
def test_an_unknown_name_is_404(client: httpx.Client, job: str, name: str) -> None:
    problem(client.get(f"{job}/artifacts/{name}"), 404)


def test_an_unfinished_job_has_no_artifacts_yet(client: httpx.Client, queued: str, store: JobStore) -> None:
    for _ in range(2):
        problem(client.get(f"/v1/jobs/{queued}/artifacts"), 409, "job_not_finished")
        problem(client.get(f"/v1/jobs/{queued}/artifacts/weights"), 409, "job_not_finished")
        store.claim(queued)


def test_a_cancelled_job_has_none(client: httpx.Client, queued: str) -> None:
    client.post(f"/v1/jobs/{queued}/cancel")
    assert client.get(f"/v1/jobs/{queued}/artifacts").json() == []
    problem(client.get(f"/v1/jobs/{queued}/artifacts/weights"), 404, "unknown_artifact")


def test_bytes_that_are_lost_are_gone(client: httpx.Client, job: str, blobs: FolderStore) -> None:
    blobs.path(SHA256).unlink()
    problem(client.get(f"{job}/artifacts/weights"), 410, "blob_missing")


def test_what_retention_has_removed_is_gone_and_not_unknown(
    client: httpx.Client, store: JobStore, queued: str, finish: Callable[..., None]
) -> None:
    finish(queued, report=b"{}")
    change_row(store, queued, expired=1)
    for path in ("", "/artifacts", "/artifacts/report"):
        problem(client.get(f"/v1/jobs/{queued}{path}"), 410, "job_expired")
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert client.delete(f"/v1/jobs/{queued}").status_code == 204
    problem(client.get(f"/v1/jobs/{queued}"), 404, "unknown_job")
