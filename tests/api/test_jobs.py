"""Jobs are accepted durably, followed cheaply, and end by the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jobs.errors import QueueFullError
from jobs.models import Failure, InputRecord, Job, JobSpec
from jobs.store import JobStore
from jobs.tenant import TenantStore
from tests.api.harness import FakeQueue, problem, upload
from tests.jobs.samples import mine
from tests.logs import logged


def test_a_created_job_can_be_followed(client: httpx.Client, spec: dict[str, Any], queue: FakeQueue) -> None:
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["status"], job["terminal"], job["verdict"]) == ("queued", False, None)
    assert queue.announced == [job["id"]]
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert client.get(answer.headers["location"]).json() == job


def test_the_log_of_a_job_s_creation_joins_request_and_job(client: httpx.Client, spec: dict[str, Any]) -> None:
    with logged() as lines:
        job_id = client.post("/v1/jobs", json=spec, headers={"X-Request-Id": "req-7"}).json()["id"]
    made, over = [line for line in lines if line["logger"].startswith("api")]
    assert (made["message"], made["job_id"]) == ("job created", job_id)
    assert (over["method"], over["path"], over["status"]) == ("POST", "/v1/jobs", 202)
    assert {(line["request_id"], line["tenant"]) for line in (made, over)} == {("req-7", "default")}


def test_the_record_resolves_every_value_of_the_preset(client: httpx.Client, spec: dict[str, Any]) -> None:
    chosen = {"method": "medic", "preset": "paper", "temperature": 7.0}
    removal = client.post("/v1/jobs", json={**spec, "removal": chosen}).json()["removal"]
    assert (removal["temperature"], removal["statistics"], removal["seed"]) == (7.0, "per_neuron", 0)


def test_the_record_of_a_search_resolves_its_settings_and_holds_no_temperature(
    client: httpx.Client, spec: dict[str, Any]
) -> None:
    chosen = {"method": "auto", "preset": "paper", "accuracy_budget": 0.02}
    removal = client.post("/v1/jobs", json={**spec, "removal": chosen}).json()["removal"]
    assert (removal["accuracy_budget"], removal["runs"], removal["statistics"]) == (0.02, 4, "per_neuron")
    assert "temperature" not in removal
    refused = client.post("/v1/jobs", json={**spec, "removal": {**chosen, "temperature": 5.0}})
    assert problem(refused, 422)["errors"][0]["pointer"].endswith("temperature")


def test_a_client_reads_back_its_own_spec(client: httpx.Client, spec: dict[str, Any]) -> None:
    body = JobSpec.model_validate(spec).model_dump_json()
    answer = client.post("/v1/jobs", content=body)
    assert Job.model_validate_json(answer.content).removal == JobSpec.model_validate_json(body).removal


def test_every_link_of_a_job_leads_somewhere(client: httpx.Client, queued: str) -> None:
    links = client.get(f"/v1/jobs/{queued}").json()["links"]
    assert links.keys() == {"self", "cancel", "artifacts"}
    assert client.get(links["self"]).status_code == 200
    problem(client.get(links["artifacts"]), 409, "job_not_finished")
    assert client.post(links["cancel"]).status_code == 202


def test_a_broker_that_is_down_loses_no_job(
    client: httpx.Client, spec: dict[str, Any], queue: FakeQueue, store: JobStore
) -> None:
    queue.is_down = True
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 202
    assert mine(store).get(answer.json()["id"]).status == "queued"


def test_an_error_that_nobody_foresaw_does_not_deny_a_job_that_is_recorded(
    client: httpx.Client, spec: dict[str, Any], queue: FakeQueue, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(queue, "announce", fail)
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 202
    assert mine(store).get(answer.json()["id"]).status == "queued"


def test_a_refused_job_is_announced_to_nobody(client: httpx.Client, spec: dict[str, Any], queue: FakeQueue) -> None:
    problem(client.post("/v1/jobs", json={**spec, "unknown": 1}), 422)
    assert queue.announced == []
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_every_file_that_does_not_fit_is_named(client: httpx.Client, spec: dict[str, Any]) -> None:
    model, clean = spec["model"]["file_id"], spec["clean_data"]["file_id"]
    wrong = {
        "model": {**spec["model"], "file_id": clean},
        "clean_data": {"file_id": model},
        "test_data": {"file_id": "file_missing"},
    }
    document = problem(client.post("/v1/jobs", json=wrong), 422, "unknown_file")
    found = {error["pointer"]: error["code"] for error in document["errors"]}
    assert found == {
        "/model/file_id": "wrong_purpose",
        "/clean_data/file_id": "wrong_purpose",
        "/test_data/file_id": "unknown_file",
    }
    problem(client.post("/v1/jobs", json={**spec, "clean_data": {"file_id": model}}), 422, "wrong_purpose")


def test_too_many_waiting_jobs_are_refused_for_now(
    client: httpx.Client, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Job:
        raise QueueFullError("1000 jobs wait already")

    monkeypatch.setattr(TenantStore, "create", full)
    answer = client.post("/v1/jobs", json=spec)
    assert problem(answer, 503, "queue_full")["retryable"]
    assert int(answer.headers["retry-after"]) > 0


def test_an_unchanged_job_is_not_sent_again(client: httpx.Client, queued: str, finish: Callable[..., None]) -> None:
    path = f"/v1/jobs/{queued}"
    first = client.get(path)
    assert first.headers["etag"].startswith('"')
    for named in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}', "*"):
        again = client.get(path, headers={"If-None-Match": named})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert "retry-after" in again.headers
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    finish(queued)
    changed = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert changed.json()["status"] == "succeeded"
    assert changed.headers["etag"] != first.headers["etag"]
    assert "retry-after" not in changed.headers


def test_a_failure_reads_as_the_contract_says(
    client: httpx.Client, queued: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure(code="nan_loss", error_class="user", message="the loss became NaN")
    failed = mine(store).get(queued).model_copy(update={"status": "failed", "error": failure})
    monkeypatch.setattr(TenantStore, "get", lambda *_: failed)
    error = client.get(f"/v1/jobs/{queued}").json()["error"]
    assert (error["class"], error["code"]) == ("user", "nan_loss")


def test_jobs_are_found_by_what_they_are(client: httpx.Client, spec: dict[str, Any]) -> None:
    other = upload(client, "model", b"another model")
    named = {"a": {"git_sha": "1", "run": "x"}, "b": {"git_sha": "1", "run": "y"}}
    ids = {
        name: client.post("/v1/jobs", json={**spec, "metadata": pairs}).json()["id"] for name, pairs in named.items()
    }
    changed = {**spec, "model": {**spec["model"], "file_id": other["id"]}}
    ids["c"] = client.post("/v1/jobs", json=changed).json()["id"]
    client.post(f"/v1/jobs/{ids['a']}/cancel")

    def found(**filters: str) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=filters).json()["jobs"]]

    assert found() == [ids["c"], ids["b"], ids["a"]]
    assert found(status="cancelled") == [ids["a"]]
    assert found(model_sha256=other["sha256"]) == [ids["c"]]
    assert found(**{"metadata[git_sha]": "1"}) == [ids["b"], ids["a"]]
    assert found(**{"metadata[git_sha]": "1", "metadata[run]": "y"}) == [ids["b"]]
    assert found(**{"metadata[run]": "\0"}) == []
    assert found(limit="1") == [ids["c"]]


def test_jobs_are_listed_page_by_page_with_their_links(client: httpx.Client, spec: dict[str, Any]) -> None:
    ids = [client.post("/v1/jobs", json=spec).json()["id"] for _ in range(3)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None
    assert [job["links"]["self"] for job in second["jobs"]] == [f"/v1/jobs/{ids[0]}"]


def test_cancel_ends_a_waiting_job_at_once(client: httpx.Client, queued: str) -> None:
    answer = client.post(f"/v1/jobs/{queued}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["terminal"]) == ("cancelled", True)
    problem(client.post(f"/v1/jobs/{queued}/cancel"), 409, "job_finished")


def test_cancel_of_a_running_job_may_be_asked_twice(client: httpx.Client, queued: str, store: JobStore) -> None:
    assert store.claim(queued) is not None
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{queued}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")


def test_only_a_job_that_has_ended_can_be_deleted(
    client: httpx.Client, queued: str, finish: Callable[..., None]
) -> None:
    problem(client.delete(f"/v1/jobs/{queued}"), 409, "job_not_finished")
    finish(queued)
    assert client.delete(f"/v1/jobs/{queued}").status_code == 204
    problem(client.get(f"/v1/jobs/{queued}"), 404, "unknown_job")


def test_the_record_carries_the_digests_of_its_inputs(client: httpx.Client, queued: str) -> None:
    job = Job.model_validate_json(client.get(f"/v1/jobs/{queued}").content)
    files = {file["id"]: file for file in client.get("/v1/files").json()["files"]}
    inputs: list[InputRecord] = [job.model, job.clean_data]
    for record in inputs:
        assert (record.sha256, record.bytes) == (files[record.file_id]["sha256"], files[record.file_id]["bytes"])
