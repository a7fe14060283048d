"""Whatever goes wrong becomes a problem document, and tells no more than it should."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.errors import MOST_PROBLEMS, STATUS, pointer
from jobs.errors import DatabaseUnavailableError, JobsError
from jobs.store import JobStore
from jobs.tenant import TenantStore
from tests.api.harness import KEY, client_of, problem
from tests.logs import logged


def subclasses(root: type[JobsError]) -> Iterator[type[JobsError]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def guarded_operations(app: FastAPI) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods if path.startswith("/v1")]


def test_every_error_of_the_jobs_room_has_a_status() -> None:
    assert set(subclasses(JobsError)) == set(STATUS)


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer", "Bearer mdk_x", f"Basic {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}0", "Bearer \xe9\xff"],
    ids=["nothing", "no key", "no secret", "another scheme", "a shorter key", "a longer key", "no ASCII"],
)
def test_no_route_of_v1_opens_without_the_key(app: FastAPI, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    with client_of(app) as client:
        for method, path in guarded_operations(app):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "head":
                problem(answer, 401, "unauthorized")
    assert len(guarded_operations(app)) >= 15


def test_health_and_documentation_open_without_the_key(app: FastAPI) -> None:
    with client_of(app) as client:
        for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200


def test_a_service_without_any_key_lets_nobody_in(app: FastAPI, store: JobStore) -> None:
    for known in store.list_keys():
        store.revoke_key(known.id)
    with client_of(app, {"Authorization": f"Bearer {KEY}"}) as client:
        problem(client.get("/v1/jobs"), 401)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("PATCH", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/job_1", 404, "unknown_job"),
        ("GET", "/v1/jobs/%00", 404, "unknown_job"),
        ("GET", "/v1/jobs/%ff%ed%a0%80", 404, "unknown_job"),
        ("GET", "/v1/files/file_1", 404, "unknown_file"),
        ("DELETE", "/v1/files/file_1", 404, "unknown_file"),
        ("DELETE", "/v1/jobs/job_1", 404, "unknown_job"),
        ("POST", "/v1/jobs/job_1/cancel", 404, "unknown_job"),
        ("GET", "/v1/jobs/job_1/artifacts", 404, "unknown_job"),
        ("GET", "/v1/jobs/job_1/artifacts/x", 404, "unknown_job"),
        ("GET", "/v1/jobs?limit=x", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?limit=0", 400, "invalid_parameters"),
        ("GET", f"/v1/jobs?limit={'9' * 5000}", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?status=done", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?model_sha256=abc", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?after=job_1", 400, "invalid_parameters"),
        ("GET", "/v1/files?after=", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?limit=1&limit=2", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?metadata[a]=1&metadata[a]=2", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?metadata[a%00]=1", 400, "invalid_parameters"),
        ("GET", "/v1/jobs?metadata=1", 400, "invalid_parameters"),
        ("GET", "/v1/files?metadata[a]=1", 400, "invalid_parameters"),
        ("GET", "/v1/files?limits=1", 400, "invalid_parameters"),
        ("PUT", "/v1/files", 400, "invalid_parameters"),
        ("PUT", "/v1/files?purpose=weights", 400, "invalid_parameters"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    problem(client.request(method, path), status, code)


def test_every_problem_of_a_query_is_named(client: httpx.Client) -> None:
    document = problem(client.get("/v1/jobs?limit=0&stat=x&model_sha256=zz"), 400, "invalid_parameters")
    details = " ".join(each["detail"] for each in document["errors"])
    assert all(name in details for name in ("stat", "limit", "model_sha256"))
    document = problem(client.put("/v1/files?purpos=model"), 400, "invalid_parameters")
    assert {each["code"] for each in document["errors"]} == {"extra_forbidden", "missing"}


def test_a_spec_with_a_problem_in_each_of_many_places_is_answered_with_as_many_as_are_read(
    client: httpx.Client, spec: dict[str, Any]
) -> None:
    options = {str(number): None for number in range(1000)}
    document = problem(client.post("/v1/jobs", json=changed(spec, ("model", "options"), options)), 422, "invalid_spec")
    assert len(document["errors"]) == MOST_PROBLEMS


@pytest.mark.parametrize("layers", [["x"] * 2001, ["x" * 256]])
def test_a_choice_of_layers_is_no_place_to_store_something(
    client: httpx.Client, spec: dict[str, Any], layers: list[str]
) -> None:
    asked = {**spec, "removal": {"method": "medic", "layers": layers}}
    problem(client.post("/v1/jobs", json=asked), 422, "invalid_spec")


def test_a_refused_method_names_the_ones_that_work(client: httpx.Client) -> None:
    assert set(client.patch("/v1/limits").headers["allow"].split(", ")) >= {"GET"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"\xff\xfe{\x00}\x00", 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b"9" * 5000, 400, "malformed_json"),
        (b'{"model": {}, "removal": {"seed": 1, "seed": 2}}', 400, "malformed_json"),
        (b"null", 422, "invalid_spec"),
        (b"[]", 422, "invalid_spec"),
        (b'{"model": NaN}', 422, "invalid_spec"),
        (b'{"\\ud800": "\\u0000"}', 422, "invalid_spec"),
        (b"[" * 900 + b"1e999" + b"]" * 900, 422, "invalid_spec"),
        (b" " * (1024**2 + 1), 413, "too_large"),
    ],
)
def test_a_body_that_is_no_spec_is_a_problem(client: httpx.Client, body: bytes, status: int, code: str) -> None:
    problem(client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), status, code)


def changed(spec: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    """Set a value deep in a copy of a spec."""
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    inner = copy
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = value
    return copy


@pytest.mark.parametrize(
    "place",
    [
        ("removal", "temperature"),
        ("removal", "preset"),
        ("removal", "layers"),
        ("removal", "unknown"),
        ("removal", "medic"),
        ("model", "architecture"),
        ("model", "options", "scale"),
        ("model", "preprocessing", "mean"),
        ("metadata", "bad key/~"),
        ("triggered_data", "file_id"),
    ],
)
@pytest.mark.parametrize("value", [None, [[]], {"a": {}}], ids=["null", "list", "object"])
def test_a_problem_points_into_the_spec_that_was_sent(
    client: httpx.Client, spec: dict[str, Any], place: tuple[str, ...], value: object
) -> None:
    document = problem(client.post("/v1/jobs", json=changed(spec, place, value)), 422, "invalid_spec")
    assert any(error["pointer"].startswith(pointer(place)) for error in document["errors"])


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "place", [("model", "preprocessing", "mean"), ("model", "options"), ("removal", "temperature")]
)
def test_no_number_of_a_spec_is_infinite(
    client: httpx.Client, spec: dict[str, Any], place: tuple[str, ...], text: str
) -> None:
    body = json.dumps(changed(spec, place, ["HERE"])).replace('"HERE"', text)
    document = problem(client.post("/v1/jobs", content=body), 422)
    assert [error["pointer"] for error in document["errors"]] == [pointer([*place, 0])]


def test_every_problem_of_a_spec_is_listed(client: httpx.Client) -> None:
    document = problem(client.post("/v1/jobs", json={"removal": {"method": "medic", "epochs": 0, "seed": -1}}), 422)
    assert {error["pointer"] for error in document["errors"]} == {
        "/model",
        "/clean_data",
        "/removal/epochs",
        "/removal/seed",
    }


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("removal", "epochs"), "3"),
        (("removal", "epochs"), True),
        (("removal", "learning_rate"), "0.1"),
        (("removal", "horizontal_flip"), 1),
        (("removal", "layers"), "conv1"),
        (("deadline_seconds",), "60"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_converted(
    client: httpx.Client, spec: dict[str, Any], place: tuple[str, ...], value: object
) -> None:
    document = problem(client.post("/v1/jobs", json=changed(spec, place, value)), 422)
    assert [error["pointer"] for error in document["errors"]] == [pointer(place)]


def test_lists_and_whole_numbers_stand_for_tuples_and_floats(client: httpx.Client, spec: dict[str, Any]) -> None:
    spec["removal"] = {"method": "medic", "layers": ["feature_maps"], "learning_rate": 1}
    assert client.post("/v1/jobs", json=spec).status_code == 202


def test_an_answer_to_endless_problems_has_an_end(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={f"key{number}": 1 for number in range(20_000)})
    assert len(problem(answer, 422)["errors"]) == 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
places = st.sampled_from(
    ["model", "clean_data", "test_data", "triggered_data", "removal", "metadata", "deadline_seconds"]
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.dictionaries(places | st.text(), json_values, max_size=4))
def test_no_json_object_is_too_odd_for_an_answer(client: httpx.Client, value: dict[str, Any]) -> None:
    problem(client.post("/v1/jobs", content=json.dumps(value)), 422, "invalid_spec")


def test_a_failure_of_the_service_is_logged_under_its_request_and_tells_nothing(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(TenantStore, "get", fail)
    with logged() as lines:
        answer = client.get("/v1/jobs/job_1", headers={"X-Request-Id": "trace-7"})
    assert problem(answer, 500, "internal")["request_id"] == "trace-7"
    assert "swordfish" not in answer.text
    (line,) = [each for each in lines if each["level"] == "ERROR"]
    assert line["request_id"] == "trace-7"
    assert line["exception"].endswith("RuntimeError: the password is swordfish")


def test_a_silent_database_asks_for_patience(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DatabaseUnavailableError("the database does not answer")

    monkeypatch.setattr(TenantStore, "get", fail)
    answer = client.get("/v1/jobs/job_1")
    document = problem(answer, 503, "database_unavailable")
    assert document["retryable"]
    assert answer.headers["retry-after"] == str(document["retry_after"])


@pytest.mark.parametrize("given_id", ["ci-run.42_a", "x" * 128])
def test_a_request_id_comes_back(client: httpx.Client, given_id: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": given_id}).headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["", "a b", "x" * 129, "a\tb", "<script>", "é"])
def test_a_request_id_that_could_do_harm_is_replaced(client: httpx.Client, given_id: str) -> None:
    made = client.get("/livez", headers={"X-Request-Id": given_id.encode()}).headers["x-request-id"]
    assert made != given_id
    assert made.startswith("req_")


def test_the_last_of_many_members_may_be_the_repeated_one(client: httpx.Client) -> None:
    members = b",".join(b'"%d":1' % number for number in range(90_000))
    began = time.monotonic()
    problem(client.post("/v1/jobs", content=b'{%b,"0":1}' % members), 400, "malformed_json")
    assert time.monotonic() - began < 10  # to look for each among all before it took minutes


def test_a_request_with_two_lengths_is_refused(client: httpx.Client) -> None:
    headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    problem(client.post("/v1/jobs", content=b"{}", headers=headers), 400, "ambiguous_length")


def test_a_method_that_an_address_does_not_have_is_told_all_that_it_has(app: FastAPI, client: httpx.Client) -> None:
    paths = app.openapi()["paths"]
    for path, operations in paths.items():
        answer = client.request("PATCH", path)
        allowed = {method.lower() for method in answer.headers["allow"].split(", ")}
        assert (answer.status_code, allowed) == (405, set(operations)), path
