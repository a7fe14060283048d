"""Secrets stay where they belong: in no log, answer, report, artifact or database, whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import program
from benchmarks.stack import CELERY, POLLING, Stack, stack, wait_ended, wait_for
from jobs.keys import new_key
from medic_client.client import MedicClient
from medic_client.supervise import API, CELERY_WORKER, POLLING_WORKER
from tests.end_to_end.test_celery import uploaded
from tests.servers import postgresql_server, redis_server

OF_DATABASE = "canary7261"  # short: pydantic shows long values in part
OF_BROKER = "canary4417"
REFUSED = "canaryofarefusedheader" + "0" * 43
"""Long enough for the secret of a key."""


def said_by(arguments: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """All that a program says, which ends by itself."""
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=120)
    return ended.stdout + ended.stderr


def refusals(client: MedicClient, key: str) -> Iterator[str]:
    """Whole answers to requests that hold a secret, or that fail."""
    with httpx.Client(base_url=client._http.base_url) as http:
        for header in (f"Bearer mdk_x_{REFUSED}", f"Bearer {REFUSED}", f"Basic {REFUSED}", f"Bearer {key}x"):
            yield answered(http.get("/v1/jobs", headers={"Authorization": header}), 401)
        for path in ("/v1/jobs/job_x", "/v1/jobs?limit=x", "/v1/nothing"):
            yield answered(http.get(path, headers={"Authorization": f"Bearer {key}"}), 400, 404)
        yield answered(http.get("/readyz"), 200, 503)


def answered(answer: httpx.Response, *statuses: int) -> str:
    assert answer.status_code in statuses, answer.text
    return f"{answer.headers} {answer.text}"


def files_below(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


def assert_nowhere(secrets: Mapping[str, str], *texts: str | bytes) -> None:
    for text in texts:
        content = text.encode() if isinstance(text, str) else text
        for name, secret in secrets.items():
            assert secret.encode() not in content, f"{name} is in {content[:2000]!r}"


def secret_of(key: str) -> str:
    return key.rpartition("_")[2]


@pytest.mark.timeout(900)
def test_the_embedded_service_keeps_its_secrets(inputs: Path, tmp_path: Path) -> None:
    key = new_key()
    with stack(tmp_path / "service", inputs, MEDIC_API_KEY=key) as service, service.api(key) as client:
        service.start(*POLLING)
        made = said_by(("-m", "jobs", "keys", "create"), service.environment()).strip()
        secrets = {"the key of the settings": secret_of(key), "a key that was made": secret_of(made), "header": REFUSED}
        assert len(secret_of(made)) == 64
        said = [*refusals(client, key)]
        job = wait_ended(client, client.sanitize(service.spec(epochs=1)).id, 400)
        assert job.status == "succeeded"
        said += [said_by(("-m", "jobs", "keys", "list"), service.environment())]
        said += [said_by(("-m", "medic_client.main", "doctor"), service.environment())]
        (service.folder / "data" / "blobs" / "tmp").rename(service.folder / "away")
        assert answered(client._http.put("/v1/files?purpose=clean", content=b"x"), 500)
        assert_nowhere(secrets, *said, *files_below(service.folder))  # the database's journal among them


@pytest.mark.timeout(900)
def test_a_service_on_redis_and_postgresql_keeps_its_secrets_also_when_they_are_away(
    inputs: Path, tmp_path: Path
) -> None:
    key = new_key()
    secrets = {"database": OF_DATABASE, "broker": OF_BROKER, "key": secret_of(key), "header": REFUSED}
    with ExitStack() as outer, ExitStack() as servers:
        broker = servers.enter_context(redis_server(password=OF_BROKER))
        database = servers.enter_context(postgresql_server(password=OF_DATABASE))
        urls = {"MEDIC_BROKER_URL": broker.url, "MEDIC_DATABASE_URL": database.url, "MEDIC_LOG_FORMAT": "json"}
        service = outer.enter_context(stack(tmp_path / "service", inputs, MEDIC_API_KEY=key, **urls))
        client = outer.enter_context(api_of(service, key))
        worker = service.start(*CELERY)
        job = wait_ended(client, client.sanitize(service.spec(epochs=1)).id, 400)
        assert job.status == "succeeded"
        said = [*refusals(client, key), said_by(("-m", "worker.doctor"), service.environment())]
        assert '"broken"' not in said[-1]
        dump = [str(program("pg_dump")), database.url]
        said += [subprocess.run(dump, capture_output=True, text=True, check=True).stdout]
        assert job.id in said[-1]

        broker.kill()
        client.create_job(uploaded(client, service.spec(epochs=1)))
        servers.close()
        wait_for(lambda: client._http.get("/readyz").status_code == 503, 60)
        said += [answered(client._http.get(path), 503) for path in ("/readyz", "/v1/jobs", "/v1/jobs/job_x")]
        wait_for(lambda: "sweep put off" in service.log(worker), 60)
        said += [said_by(("-m", "worker.doctor"), service.environment())]
        said += [said_by(arguments, service.environment()) for arguments in (API, ("-m", "jobs", "keys", "list"))]
        lines = [json.loads(line) for log in service.folder.glob("*.log") for line in log.read_text().splitlines()]
        assert {"api", "worker.run", "worker.trainer", "jobs.sweeper", "celery.app.trace"} <= {
            line["logger"] for line in lines
        }
        assert {line["job_id"] for line in lines if line["logger"] == "worker.trainer"} == {job.id}
        assert_nowhere(secrets, *said, *files_below(service.folder))


def api_of(service: Stack, key: str) -> MedicClient:
    """The API, whose log is for machines."""
    process = service.start(*API)

    def address() -> str | None:
        messages = (json.loads(line)["message"] for line in service.log(process).splitlines())
        return next((each.split()[-1] for each in messages if each.startswith("listening on ")), None)

    return MedicClient(wait_for(address, 30), key)


MALFORMED: dict[str, dict[str, str]] = {
    "another database": {"MEDIC_DATABASE_URL": f"mysql://medic:{OF_DATABASE}@127.0.0.1/medic"},
    "no URL, for machines": {"MEDIC_DATABASE_URL": OF_DATABASE, "MEDIC_LOG_FORMAT": "json"},
    "a password where the port is, or cut by a slash": {
        "MEDIC_DATABASE_URL": f"postgresql://127.0.0.1:{OF_DATABASE}/medic",
        "MEDIC_BROKER_URL": f"redis://:{OF_BROKER}/x@127.0.0.1:6379/0",
    },
}
PROGRAMS = (
    *(API, POLLING_WORKER, CELERY_WORKER, ("-m", "worker.sweep"), ("-m", "worker.doctor")),
    *(("-m", "jobs", "keys", "list"), ("-m", "jobs", "backup", "copy")),
)


@pytest.mark.parametrize("settings", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_setting_is_named_and_its_value_is_not(settings: dict[str, str], tmp_path: Path) -> None:
    for arguments in PROGRAMS:
        said = said_by(arguments, alone(tmp_path, MEDIC_BROKER_URL="redis://127.0.0.1:1/0") | settings)
        assert "database_url" in said.lower()
        assert_nowhere({"database": OF_DATABASE, "broker": OF_BROKER}, said)


def test_a_key_that_is_none_is_not_told(tmp_path: Path) -> None:
    said = said_by(API, alone(tmp_path, MEDIC_API_KEY=f"mdk_{REFUSED[:30]}"))
    assert "an API key reads" in said
    assert_nowhere({"key": REFUSED[:30]}, said)


def alone(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDIC_")}
    return {**kept, "MEDIC_DATA_DIR": str(folder / "data"), **settings}
