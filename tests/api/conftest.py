"""The application on a real store and real folders; only the queue is a fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from jobs.artifacts import FolderStore
from jobs.claims import Succeeded
from jobs.keys import record_of
from jobs.models import Artifact, Comparison, Summary
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from tests.api.harness import KEY, FakeQueue, client_of, upload


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, upload_limit_bytes=3 * 1024**2, multipart_limit_bytes=2 * 1024**2)


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    opened = open_store(settings)
    opened.add_key(record_of(KEY))
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "blobs")


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[], list[str]]:
    """Lists what lies in the artifact store, unfinished writes among it."""
    return lambda: sorted(path.name for path in (tmp_path / "blobs").glob("*/*"))


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def app(settings: Settings, store: JobStore, blobs: FolderStore, queue: FakeQueue) -> FastAPI:
    return create_app(settings, store, blobs, queue)


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    """A client with the key."""
    with client_of(app, {"Authorization": f"Bearer {KEY}"}) as opened:
        yield opened


@pytest.fixture
def spec(client: httpx.Client) -> dict[str, Any]:
    """A spec whose files were uploaded."""
    ids = {purpose: upload(client, purpose, purpose.encode())["id"] for purpose in ("model", "clean")}
    return {
        "model": {"file_id": ids["model"], "architecture": "medic/resnet8"},
        "clean_data": {"file_id": ids["clean"]},
    }


@pytest.fixture
def queued(client: httpx.Client, spec: dict[str, Any]) -> str:
    """The id of a job that waits."""
    created = client.post("/v1/jobs", json=spec)
    assert created.status_code == 202
    return str(created.json()["id"])


@pytest.fixture
def finish(store: JobStore, blobs: FolderStore) -> Callable[..., None]:
    """Lets a job succeed with artifacts of these names and bytes."""

    def succeed(job_id: str, **contents: bytes) -> None:
        claim = store.claim(job_id)
        assert claim is not None
        made = {name: blobs.put_bytes(content) for name, content in contents.items()}
        artifacts = tuple(
            Artifact(name=name, sha256=blob.sha256, bytes=blob.size, media_type="application/x-made")
            for name, blob in made.items()
        )
        share = Comparison(before=0.9, after=0.8, n=10, interval_before=(0.6, 1.0), interval_after=(0.5, 0.9))
        assert store.finish(claim, Succeeded(summary=Summary(clean_accuracy=share), artifacts=artifacts))

    return succeed
