"""One call uploads and starts, or names every problem and keeps nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jobs.errors import QueueFullError
from jobs.tenant import TenantStore
from tests.api.harness import FakeQueue, problem

SPEC = {"model": {"architecture": "medic/resnet8"}}
FILES = {"model": ("m.pth", b"weights"), "clean": ("c.zip", b"images")}


def send(client: httpx.Client, spec: object, **files: tuple[str, bytes]) -> httpx.Response:
    return client.post("/v1/sanitize", data={"spec": json.dumps(spec)}, files=files)


def test_one_call_uploads_and_starts(client: httpx.Client, queue: FakeQueue) -> None:
    answer = send(client, {**SPEC, "removal": {"temperature": 3}, "metadata": {"a": "b"}}, **FILES)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert queue.announced == [job["id"]]
    assert (job["removal"]["temperature"], job["metadata"]) == (3, {"a": "b"})
    files = {file["purpose"]: file for file in client.get("/v1/files").json()["files"]}
    assert {purpose: file["filename"] for purpose, file in files.items()} == {"model": "m.pth", "clean": "c.zip"}
    assert (job["model"]["file_id"], job["clean_data"]["file_id"]) == (files["model"]["id"], files["clean"]["id"])


def test_all_four_files_find_their_place(client: httpx.Client) -> None:
    spec = {**SPEC, "triggered_data": {"target_class": "dog"}}
    job = send(client, spec, **FILES, test=("t.zip", b"test"), triggered=("p.zip", b"trigger")).json()
    assert job["test_data"]["bytes"] == len(b"test")
    assert (job["triggered_data"]["bytes"], job["triggered_data"]["target_class"]) == (len(b"trigger"), "dog")


@pytest.mark.parametrize("removal", [{}, {"removal": {"method": "fine_tune"}}, {"removal": {"method": "prayer"}}])
def test_a_method_that_learns_from_clean_data_is_refused_without(client: httpx.Client, removal: dict[str, Any]) -> None:
    answer = send(client, {**SPEC, **removal}, model=FILES["model"])
    pointers = {error["pointer"]: error["code"] for error in problem(answer, 422, "invalid_form")["errors"]}
    assert pointers["/clean_data"] == "missing"


def test_a_method_that_takes_no_images_needs_none(client: httpx.Client) -> None:
    answer = send(client, {**SPEC, "removal": {"method": "lipschitz_pruning"}}, model=FILES["model"])
    assert answer.status_code == 202
    job = client.get(f"/v1/jobs/{answer.json()['id']}").json()
    assert job["clean_data"] is None


def test_the_spec_may_be_a_file_of_its_own(client: httpx.Client) -> None:
    spec = ("spec.json", json.dumps(SPEC).encode())
    assert client.post("/v1/sanitize", files={**FILES, "spec": spec}).status_code == 202


def test_every_problem_of_form_and_spec_is_listed_and_nothing_kept(
    client: httpx.Client, stored: Callable[[], list[str]], queue: FakeQueue
) -> None:
    spec = {"model": {"file_id": "file_1"}, "removal": {"method": "medic", "epochs": 0}, "verdict": "pass"}
    answer = send(client, spec, clean=FILES["clean"], triggered=("p", b""), other=("o", b""))
    pointers = {error["pointer"] for error in problem(answer, 422, "invalid_form")["errors"]}
    assert pointers == {
        "/model",
        "/other",
        "/model/file_id",
        "/model/architecture",
        "/removal/epochs",
        "/verdict",
        "/triggered_data/target_class",
    }
    assert stored() == queue.announced == []


@pytest.mark.parametrize(
    ("spec", "status"),
    [("", 400), ("{", 400), ("null", 422), ("[]", 422), ('{"model": 3}', 422), ('{"model": NaN}', 422)],
)
def test_a_spec_that_is_none_is_a_problem(client: httpx.Client, spec: str, status: int) -> None:
    problem(client.post("/v1/sanitize", data={"spec": spec}, files=FILES), status)


def test_a_form_without_a_spec_says_so(client: httpx.Client) -> None:
    errors = problem(client.post("/v1/sanitize", files=FILES), 422)["errors"]
    assert [error["pointer"] for error in errors] == ["/spec"]


def test_files_are_recorded_with_their_job_or_not_at_all(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise QueueFullError("1000 jobs wait already")

    with monkeypatch.context() as patched:
        patched.setattr(TenantStore, "_check_room", full)  # the last that is looked at before a job is written
        problem(send(client, SPEC, **FILES), 503, "queue_full")
    assert client.get("/v1/files").json()["files"] == []
    assert send(client, SPEC, **FILES).status_code == 202
    assert len(client.get("/v1/files").json()["files"]) == 2


def test_a_form_that_breaks_off_is_not_taken_for_one_that_asks_for_less(
    client: httpx.Client, stored: Callable[[], list[str]]
) -> None:
    files: dict[str, Any] = {**FILES, "spec": json.dumps(SPEC).encode(), "test": b"held out by whom?"}
    request = client.build_request("POST", "/v1/sanitize", files=files)
    whole = request.read()
    for cut in (4, 40, len(whole) // 2):
        answer = client.post(
            "/v1/sanitize", content=whole[:-cut], headers={"Content-Type": request.headers["Content-Type"]}
        )
        problem(answer, 400, "malformed_multipart")
    assert stored() == []


def test_a_spec_in_another_encoding_is_refused_as_json_is(client: httpx.Client) -> None:
    named = json.dumps({**SPEC, "metadata": {"k": "caf\xe9"}}, ensure_ascii=False).encode("latin-1")
    request = client.build_request("POST", "/v1/sanitize", files={**FILES, "spec": (None, named)})
    problem(client.send(request), 400, "malformed_multipart")


def test_a_form_beyond_the_limit_is_told_the_other_way(client: httpx.Client) -> None:
    files: dict[str, Any] = {**FILES, "model": ("m", bytes(3 * 1024**2))}
    assert "PUT /v1/files" in problem(send(client, SPEC, **files), 413, "too_large")["detail"]


def test_a_spec_beyond_the_limit_of_json_is_refused(client: httpx.Client) -> None:
    files = {**FILES, "spec": ("spec.json", b" " * (1024**2 + 1))}
    assert "spec" in problem(client.post("/v1/sanitize", files=files), 413, "too_large")["detail"]
