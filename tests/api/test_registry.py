"""What the service says about itself is what it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from api.app import create_app
from jobs.artifacts import FolderStore
from jobs.errors import DatabaseUnavailableError, InvalidKeyError
from jobs.keys import new_key
from jobs.models import WorkerSandbox
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.workers import register
from medic_core.config import PRESETS, RemovalConfig, expand_preset
from tests.api.harness import FakeQueue, client_of, problem


def test_every_removal_method_is_listed_with_its_schema(client: httpx.Client) -> None:
    methods = {method["name"]: method for method in client.get("/v1/methods").json()["methods"]}
    assert methods.keys() == {config.method for config in get_args(RemovalConfig)}
    for config in get_args(RemovalConfig):
        schema = methods[config.method]["schema"]
        assert schema["properties"].keys() == {field.name for field in fields(config)}
        assert methods[config.method]["description"]
    assert methods["medic"]["schema"]["properties"]["temperature"]["exclusiveMinimum"] == 0


def test_presets_are_listed_as_they_are_expanded(client: httpx.Client) -> None:
    methods = {method["name"]: method for method in client.get("/v1/methods").json()["methods"]}
    assert methods["medic"]["presets"].keys() == PRESETS.keys()
    assert methods["auto"]["presets"].keys() == PRESETS.keys()
    assert methods["scratch"]["presets"] == {}
    for method in ("medic", "auto"):
        for name, values in methods[method]["presets"].items():
            chosen = {"method": method, "preset": name}
            assert {**values, **chosen} == json.loads(json.dumps(expand_preset(chosen)))


@pytest.mark.parametrize("preset", [None, [], {}, 1, "unknown"])
def test_an_unknown_preset_is_left_for_validation_to_name(preset: object) -> None:
    with pytest.raises(ValidationError, match="preset"):
        TypeAdapter(RemovalConfig).validate_python(expand_preset({"preset": preset}))


def test_every_architecture_is_listed_the_refused_ones_with_their_reason(client: httpx.Client) -> None:
    listed = {entry["name"]: entry for entry in client.get("/v1/architectures").json()["architectures"]}
    assert listed["medic/wide_resnet16_1"]["refused"] is None
    assert listed["medic/wide_resnet16_1"]["input_size"] == [32, 32]
    assert any(entry["refused"] for entry in listed.values())


def test_limits_are_those_of_the_settings(client: httpx.Client, settings: Settings) -> None:
    assert client.get("/v1/limits").json() == {
        "upload_bytes": settings.upload_limit_bytes,
        "multipart_bytes": settings.multipart_limit_bytes,
        "json_bytes": 1024**2,
        "queued_jobs": settings.queue_limit,
        "tenant_queued_jobs": None,
        "tenant_bytes": None,
        "requests_per_minute": None,
        "default_deadline_seconds": settings.deadline_seconds,
        "retention_days": None,
    }


def test_a_ready_service_says_how_its_workers_hear_of_jobs(
    client: httpx.Client, settings: Settings, store: JobStore, blobs: FolderStore, queue: FakeQueue
) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "queue": "polling", "workers": []}
    with_broker = Settings(data_dir=settings.data_dir, broker_url="redis://127.0.0.1:1/0")
    with client_of(create_app(with_broker, store, blobs, queue)) as other:
        assert other.get("/readyz").json() == {"status": "ready", "queue": "celery", "workers": []}


def test_a_ready_service_says_without_a_key_what_sandbox_its_living_workers_have(
    app: FastAPI, settings: Settings
) -> None:
    sandbox = WorkerSandbox(mode="auto", layers={"udp": "active", "reading": "unavailable"})
    with client_of(app) as stranger:
        with register(settings.data_dir, sandbox):
            assert stranger.get("/readyz").json()["workers"] == [sandbox.model_dump()]
        assert stranger.get("/readyz").json()["workers"] == []


def test_a_service_that_cannot_store_is_alive_but_not_ready(
    client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def silent(**_: object) -> None:
        raise DatabaseUnavailableError("the database does not answer")

    monkeypatch.setattr(store, "check", silent)
    (tmp_path / "blobs" / "tmp").rename(tmp_path / "elsewhere")
    document = problem(client.get("/readyz"), 503, "not_ready")
    assert [error["code"] for error in document["errors"]] == ["database_unavailable", "storage_unavailable"]
    assert client.get("/livez").status_code == 200


def test_a_key_of_the_settings_replaces_the_stored_one(
    client: httpx.Client, settings: Settings, store: JobStore, blobs: FolderStore, queue: FakeQueue
) -> None:
    key = new_key()
    named = Settings(data_dir=settings.data_dir, api_key=key)
    app = create_app(named, store, blobs, queue)
    with client_of(app, {"Authorization": f"bearer {key}"}) as other, client_of(app, dict(client.headers)) as stored:
        assert other.get("/v1/limits").status_code == 200
        problem(stored.get("/v1/limits"), 401)


def test_a_key_that_is_none_stops_the_start(settings: Settings, store: JobStore, blobs: FolderStore) -> None:
    named = Settings(data_dir=settings.data_dir, api_key="secret")
    with pytest.raises(InvalidKeyError, match="mdk_"):
        create_app(named, store, blobs, FakeQueue())


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_the_openapi_document_refers_only_to_what_it_has(app: FastAPI) -> None:
    document = json.loads(json.dumps(app.openapi()))
    schemas = document["components"]["schemas"]
    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= schemas.keys()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)
    assert "JobSpec-Input" in schemas
    assert not any("HTTPValidationError" in name for name in schemas)


def test_every_operation_has_a_name_of_its_own_and_documents_its_problems(app: FastAPI) -> None:
    document = app.openapi()
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names) >= 18
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
    for path, operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if status[0] not in "23"}
        assert "default" in errors
        assert {"400", "401"} <= errors.keys() or not path.startswith("/v1")
        for answer in errors.values():
            assert answer["content"].keys() == {"application/problem+json"}
        assert bool(operation.get("security")) == path.startswith("/v1")
