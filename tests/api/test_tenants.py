"""Who is let in, what a key allows, and that tenants never meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from jobs.keys import Scope, new_key, record_of
from jobs.store import JobStore
from tests.api.harness import client_of, problem

Opener = Callable[..., httpx.Client]


@pytest.fixture
def client_with(app: FastAPI, store: JobStore) -> Iterator[Opener]:
    """Opens clients with new keys."""
    opened: list[httpx.Client] = []

    def make(*scopes: Scope, tenant: str = "default") -> httpx.Client:
        key = new_key()
        store.add_key(record_of(key, tenant=tenant, scopes=scopes))
        opened.append(client_of(app, {"Authorization": f"Bearer {key}"}))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def addressed(app: FastAPI) -> list[tuple[str, str]]:
    """Every operation whose path names a record, as the OpenAPI document has it."""
    paths = app.openapi()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods if "{" in path]


def test_every_route_says_of_another_tenants_records_that_there_are_none(
    app: FastAPI, client: httpx.Client, client_with: Opener, queued: str, finish: Callable[..., None]
) -> None:
    finish(queued, **{"report.json": b"{}"})
    ids = {"job_id": queued, "file_id": client.get("/v1/files").json()["files"][0]["id"], "name": "report.json"}
    other = client_with("admin", tenant="other")
    checked = 0
    for method, path in addressed(app):
        place = path.format(**ids)
        answer = other.request(method, place)
        assert answer.status_code == 404, (method, path)
        known = other.request(method, place.replace(queued, "job_1").replace(ids["file_id"], "file_1"))
        if method != "head":  # the two answers tell nothing apart but the id
            assert re.sub(r"(job|file)_\w+", "", answer.json()["detail"]) == re.sub(
                r"(job|file)_\w+", "", known.json()["detail"]
            )
        checked += 1
    assert checked >= 8
    assert other.get("/v1/jobs").json()["jobs"] == []
    assert other.get("/v1/files").json()["files"] == []
    assert client.get(f"/v1/jobs/{queued}").status_code == 200


def test_a_job_cannot_be_made_of_another_tenants_files(
    client_with: Opener, client: httpx.Client, spec: dict[str, Any]
) -> None:
    other = client_with("admin", tenant="other")
    document = problem(other.post("/v1/jobs", json=spec), 422, "unknown_file")
    assert {error["pointer"] for error in document["errors"]} == {"/model/file_id", "/clean_data/file_id"}
    assert client.post("/v1/jobs", json=spec).status_code == 202


NEEDED: dict[str, set[Scope]] = {
    "upload_file": {"files:write"},
    "upload_form": {"files:write"},
    "delete_file": {"files:write"},
    "create_job": {"jobs:write"},
    "cancel_job": {"jobs:write"},
    "delete_job": {"jobs:write"},
    "sanitize": {"files:write", "jobs:write"},
    "list_methods": set(),
    "list_architectures": set(),
    "get_limits": set(),
}
"""What each operation asks for; those that are not named: ``jobs:read``."""


@pytest.mark.parametrize("scope", ["files:write", "jobs:write", "jobs:read"])
def test_a_key_opens_what_its_scopes_say_and_nothing_else(app: FastAPI, client_with: Opener, scope: Scope) -> None:
    client = client_with(scope)
    operations = [
        (method, path, operation)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/v1")
    ]
    assert {operation["operationId"] for _, _, operation in operations} >= NEEDED.keys()
    for method, path, operation in operations:
        answer = client.request(method, re.sub(r"\{\w+\}", "nothing", path))
        missing = NEEDED.get(operation["operationId"], {"jobs:read"}) - {scope}
        assert (answer.status_code == 403) == bool(missing), (method, path)
        if missing and method != "head":
            assert missing <= set(re.findall(r"\w+:\w+", problem(answer, 403, "insufficient_scope")["detail"]))
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_a_revoked_key_opens_nothing_from_then_on(client_with: Opener, store: JobStore) -> None:
    client = client_with("admin")
    assert client.get("/v1/jobs").status_code == 200
    key_id = client.headers["authorization"].split("_")[1]
    store.revoke_key(key_id)
    problem(client.get("/v1/jobs"), 401, "unauthorized")
