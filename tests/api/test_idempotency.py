"""A request that is sent again has the effect of one, on every POST that creates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from jobs.errors import QueueFullError
from jobs.keys import new_key, record_of
from jobs.store import JobStore
from jobs.tenant import TenantStore
from tests.api.harness import FakeQueue, client_of, problem
from tests.jobs.samples import mine

KEY = {"Idempotency-Key": "made-up-by-the-client"}
SPEC = {"model": {"architecture": "medic/resnet8"}, "clean_data": {}}

Post = Callable[[httpx.Client, str], httpx.Response]


def post_job(client: httpx.Client, seed: str) -> httpx.Response:
    """Of files that were uploaded first, the oldest of each purpose."""
    files = client.get("/v1/files").json()["files"]
    ids = {file["purpose"]: file["id"] for file in files}
    named = {"model": {**SPEC["model"], "file_id": ids["model"]}, "clean_data": {"file_id": ids["clean"]}}
    return client.post("/v1/jobs", json={**named, "removal": {"seed": int(seed)}}, headers=KEY)


def post_form(client: httpx.Client, content: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": content.encode()}, data={"purpose": "clean"}, headers=KEY)


def sanitize(client: httpx.Client, content: str) -> httpx.Response:
    parts = {"model": b"weights", "clean": content.encode(), "spec": json.dumps(SPEC).encode()}
    return client.post("/v1/sanitize", files=parts, headers=KEY)


each_post = pytest.mark.parametrize("post", [post_job, post_form, sanitize])


def records(store: JobStore) -> tuple[int, int]:
    return len(mine(store).list_jobs(limit=200).jobs), len(mine(store).list_files(limit=200).files)


@pytest.mark.usefixtures("spec")
@each_post
def test_the_same_request_is_answered_alike_and_makes_nothing_more(
    post: Post, client: httpx.Client, store: JobStore, queue: FakeQueue
) -> None:
    first = post(client, "1")
    made = records(store)
    again = post(client, "1")
    assert first.is_success
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert records(store) == made
    assert len(queue.announced) == made[0]


@pytest.mark.usefixtures("spec")
@each_post
def test_another_request_under_the_same_key_is_refused(post: Post, client: httpx.Client, store: JobStore) -> None:
    assert post(client, "1").is_success
    made = records(store)
    problem(post(client, "2"), 422, "idempotency_key_reused")
    assert records(store) == made


@pytest.mark.usefixtures("spec")
@each_post
def test_a_request_that_is_not_answered_yet_asks_its_likes_to_wait(
    post: Post, client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    reserve = TenantStore.reserve

    def unanswered(self: TenantStore, key: str, fingerprint: str) -> object:
        kept.append(reserve(self, key, fingerprint))
        return reserve(self, key, fingerprint)  # as if the first had come a moment before

    monkeypatch.setattr(TenantStore, "reserve", unanswered)
    before = records(store)
    document = problem(post(client, "1"), 409, "request_in_flight")
    assert (document["retryable"], document["retry_after"]) == (True, 1)
    monkeypatch.setattr(TenantStore, "reserve", reserve)
    assert records(store) == before
    mine(store).release(kept[0])
    assert post(client, "1").is_success


def test_fifty_at_once_make_one_job(app: FastAPI, client: httpx.Client, spec: dict[str, Any], store: JobStore) -> None:
    def send(_: int) -> httpx.Response:
        with client_of(app, dict(client.headers)) as other:
            for _attempt in range(100):
                answer = other.post("/v1/jobs", json=spec, headers=KEY)
                if answer.status_code != 409:
                    break
                time.sleep(0.05)
            return answer

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(send, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert records(store)[0] == 1


@pytest.mark.usefixtures("spec")
def test_a_request_that_made_nothing_may_come_again(
    client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise QueueFullError("1000 jobs wait already")

    with monkeypatch.context() as patched:
        patched.setattr(TenantStore, "_check_room", full)
        problem(post_job(client, "1"), 503, "queue_full")
    assert post_job(client, "2").status_code == 202
    assert records(store)[0] == 1


def test_two_tenants_may_choose_the_same_key(app: FastAPI, client: httpx.Client, store: JobStore) -> None:
    key = new_key()
    store.add_key(record_of(key, tenant="other"))
    with client_of(app, {"Authorization": f"Bearer {key}"}) as other:
        first, second = post_form(client, "mine"), post_form(other, "theirs")
    assert {first.status_code, second.status_code} == {201}
    assert first.json()["id"] != second.json()["id"]


@pytest.mark.parametrize("key", ["", "a" * 256, "a b", "\xe9"])
def test_a_key_that_is_none_is_refused(client: httpx.Client, spec: dict[str, Any], key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    problem(client.post("/v1/jobs", json=spec, headers=headers), 400, "invalid_parameters")


def test_a_request_is_the_same_in_whatever_order_its_members_come(
    client: httpx.Client, spec: dict[str, Any], store: JobStore
) -> None:
    asked = {**spec, "metadata": {"a": "1", "b": "2"}}
    turned = {name: asked[name] for name in reversed(asked)} | {"metadata": {"b": "2", "a": "1"}}
    first, again = (client.post("/v1/jobs", json=body, headers=KEY) for body in (asked, turned))
    assert (first.status_code, again.status_code, first.json()["id"]) == (202, 202, again.json()["id"])
    assert records(store)[0] == 1


def test_of_two_keys_neither_is_chosen(client: httpx.Client, spec: dict[str, Any], store: JobStore) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    problem(client.post("/v1/jobs", json=spec, headers=headers), 400, "invalid_parameters")
    assert records(store)[0] == 0
