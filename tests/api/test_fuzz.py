"""Whatever a client sends to any route of the OpenAPI document: no failure, and no answer that it does not tell of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from jobs.artifacts import FolderStore
from jobs.keys import record_of
from jobs.settings import Settings
from jobs.store import open_store
from tests.api.harness import KEY, FakeQueue

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The application, on a store that all examples share."""
    chosen = Settings(data_dir=tmp_path_factory.mktemp("fuzz"))
    store = open_store(chosen)
    store.add_key(record_of(KEY))
    yield create_app(chosen, store, FolderStore(chosen.data_dir / "blobs"), FakeQueue())
    store.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_document_tells_of(served: FastAPI, mode: GenerationMode) -> None:
    document = named(served)
    labels = []
    for found in document.get_all_operations():
        operation = found.ok()
        labels.append(operation.label)
        with suppress(Unsatisfiable):  # where nothing can be sent that the document forbids
            check(operation, mode)
    assert len(labels) >= 19


def check(operation: APIOperation, mode: GenerationMode) -> None:
    """Send what the document allows, or what it forbids."""

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=HEADERS, checks=CHECKS)

    holds()


def test_an_answer_that_the_document_does_not_tell_of_is_seen(served: FastAPI) -> None:
    document = named(served, forgetting=("/v1/jobs/{job_id}", "get", "404"))
    with pytest.raises(FailureGroup, match="Undocumented"):
        check(document["/v1/jobs/{job_id}"]["GET"], GenerationMode.POSITIVE)


def named(app: FastAPI, *, forgetting: tuple[str, str, str] | None = None) -> BaseSchema:
    """Return the document without what it says of any answer at all, so that each status has to be named."""
    told = json.loads(json.dumps(app.openapi()))
    for methods in told["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("default", None)
    if forgetting is not None:
        path, method, status = forgetting
        del told["paths"][path][method]["responses"][status]
    document = schemathesis.openapi.from_dict(told)
    document.app = app
    return document
