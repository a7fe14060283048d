"""What is too much is refused with 429, and says when to come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from jobs.artifacts import FolderStore
from jobs.keys import new_key, record_of
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from jobs.tenant import TenantStore
from tests.api.harness import FakeQueue, client_of, problem, upload

Opener = Callable[..., httpx.Client]


@pytest.fixture
def client_under(settings: Settings, store: JobStore, blobs: FolderStore) -> Iterator[Opener]:
    """Opens clients of services with limits, each with a key of its own."""
    opened: list[tuple[httpx.Client, JobStore]] = []

    def make(tenant: str = "default", **limits: int) -> httpx.Client:
        key = new_key()
        store.add_key(record_of(key, tenant=tenant))
        limited = settings.model_copy(update=limits)
        jobs = open_store(limited)
        app = create_app(limited, jobs, blobs, FakeQueue())
        opened.append((client_of(app, {"Authorization": f"Bearer {key}"}), jobs))
        return opened[-1][0]

    yield make
    for client, jobs in opened:
        client.close()
        jobs.close()


def test_a_tenant_whose_jobs_wait_is_asked_for_patience_and_others_are_not(
    client_under: Opener, spec: dict[str, Any]
) -> None:
    client = client_under(tenant_queue_limit=1)
    assert client.post("/v1/jobs", json=spec).status_code == 202
    document = problem(client.post("/v1/jobs", json=spec), 429, "tenant_queue_full")
    assert (document["retryable"], document["retry_after"]) == (True, 5)
    other = client_under("other", tenant_queue_limit=1)
    ids = {purpose: upload(other, purpose, b"x")["id"] for purpose in ("model", "clean")}
    theirs = {"model": {**spec["model"], "file_id": ids["model"]}, "clean_data": {"file_id": ids["clean"]}}
    assert other.post("/v1/jobs", json=theirs).status_code == 202


def test_what_a_request_stored_does_not_stand_against_its_repetition(client_under: Opener) -> None:
    client = client_under("birds", tenant_bytes_limit=3 * 1024**2)
    weights = {"file": ("model.pth", bytes(2 * 1024**2 - 1000))}
    files = {**weights, "purpose": (None, "model")}
    first, again = (client.post("/v1/files", files=files, headers={"Idempotency-Key": "a"}) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    problem(client.post("/v1/files", files=files, headers={"Idempotency-Key": "b"}), 429, "storage_quota_exceeded")


def test_a_tenant_that_has_too_much_may_store_again_once_it_deletes(client_under: Opener) -> None:
    client = client_under("birds", tenant_bytes_limit=10)
    first = upload(client, "clean", b"12345678")
    answer = client.put("/v1/files", params={"purpose": "clean"}, content=b"123")
    assert not problem(answer, 429, "storage_quota_exceeded")["retryable"]
    upload(client, "clean", b"12")
    client.delete(f"/v1/files/{first['id']}")
    upload(client, "clean", b"123")
    upload(client_under("fish", tenant_bytes_limit=10), "clean", b"1234567890")


def test_what_just_fits_is_taken_however_it_comes(client_under: Opener) -> None:
    client = client_under("birds", tenant_bytes_limit=10)
    for post in (
        lambda: client.put("/v1/files", params={"purpose": "clean"}, content=bytes(10)),
        lambda: client.put("/v1/files", params={"purpose": "clean"}, content=iter([bytes(4), bytes(6)])),
        lambda: client.post("/v1/files", data={"purpose": "clean"}, files={"file": ("f", bytes(10))}),
    ):
        answer = post()
        assert answer.status_code == 201
        client.delete(f"/v1/files/{answer.json()['id']}")


def test_what_was_stored_meanwhile_counts(
    client_under: Opener, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_under("birds", tenant_bytes_limit=10)
    upload(client, "clean", bytes(6))
    monkeypatch.setattr(TenantStore, "bytes_left", lambda _: 10)  # as before that upload
    problem(client.put("/v1/files", params={"purpose": "clean"}, content=bytes(6)), 429, "storage_quota_exceeded")
    assert len(store.of("birds").list_files().files) == 1


def test_a_key_that_asks_too_often_is_told_when_to_come_back_and_others_are_served(client_under: Opener) -> None:
    client = client_under(requests_per_minute=5)
    answers = [client.get("/v1/limits") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    document = problem(answers[-1], 429, "rate_limited")
    assert 1 <= document["retry_after"] <= 60
    assert answers[-1].headers["retry-after"] == str(document["retry_after"])
    assert answers[-1].headers["ratelimit-policy"] == '"requests";q=5;w=60'
    assert client.get("/livez").status_code == 200
    assert client_under(requests_per_minute=5).get("/v1/limits").status_code == 200
