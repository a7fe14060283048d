"""A service that remembers what it was asked and answers what a test wants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

NOW = datetime(2024, 1, 1, tzinfo=UTC).isoformat()
DIGEST = "0" * 64


def job_json(status: str = "queued", **more: Any) -> dict[str, Any]:
    """A job as the service would write it."""
    data = {"file_id": "file_1", "sha256": DIGEST, "bytes": 1}
    return {
        "id": "job_1",
        "status": status,
        "attempt": 1,
        "model": {**data, "architecture": "medic/wide_resnet10_1"},
        "clean_data": data,
        "removal": {"method": "medic"},
        "timestamps": {"created": NOW, "deadline": NOW},
        **more,
    }


def file_json(request: httpx.Request) -> dict[str, Any]:
    """An uploaded file as the service would write it."""
    query, content = request.url.params, request.read()
    return {
        "id": f"file_{query['purpose']}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "purpose": query["purpose"],
        "filename": query["filename"],
        "created": NOW,
    }


def comparison(before: float, after: float) -> dict[str, Any]:
    """One row of a summary."""
    return {
        "before": before,
        "after": after,
        "n": 397,
        "interval_before": [before - 0.01, before],
        "interval_after": [after, after + 0.01],
    }


SUMMARY = {
    "clean_accuracy": comparison(0.98, 0.97),
    "attack_success_rate": comparison(1.0, 0.02),
    "recovery_accuracy": comparison(0.0, 0.95),
}


@dataclass
class FakeService:
    """Takes uploads and jobs. Every job goes through ``statuses``, one a poll, and has one artifact."""

    statuses: list[str] = field(default_factory=lambda: ["running", "succeeded"])
    ended: dict[str, Any] = field(default_factory=lambda: {"summary": SUMMARY})
    ready: dict[str, Any] = field(default_factory=lambda: {"queue": "polling"})
    refusal: httpx.Response | Exception | None = None
    uploads: dict[str, bytes] = field(default_factory=dict)
    specs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    polls: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.asked.append(f"{request.method} {request.url.path}")
        if isinstance(self.refusal, Exception):
            raise self.refusal
        if self.refusal:
            return self.refusal
        match request.method, request.url.path:
            case "GET", "/readyz":
                return httpx.Response(200, json=self.ready)
            case "PUT", "/v1/files":
                self.uploads[request.url.params["purpose"]] = request.read()
                return httpx.Response(201, json=file_json(request))
            case "POST", "/v1/jobs":
                self.specs.append(json.loads(request.read()))
                return httpx.Response(202, json=job_json(removal=self.specs[-1]["removal"]))
            case "GET", "/v1/jobs":
                return httpx.Response(200, json={"jobs": [job_json("failed")], "next": "cursor"})
            case "GET", "/v1/jobs/job_1":
                return httpx.Response(200, json=self._job())
            case "GET", "/v1/jobs/job_1/artifacts":
                content = b"repaired"
                artifact = {"name": "model.safetensors", "bytes": len(content), "media_type": "x/y"}
                return httpx.Response(200, json=[{**artifact, "sha256": hashlib.sha256(content).hexdigest()}])
            case "GET", "/v1/jobs/job_1/artifacts/model.safetensors":
                return httpx.Response(200, content=b"repaired")
            case "POST", "/v1/jobs/job_1/cancel":
                return httpx.Response(202, json=job_json("cancelling"))
            case "DELETE", "/v1/jobs/job_1":
                return httpx.Response(204)
        return httpx.Response(404, json={"code": "not_found", "detail": "no such thing", "status": 404})

    def _job(self) -> dict[str, Any]:
        status = self.statuses[min(self.polls, len(self.statuses) - 1)]
        self.polls += 1
        removal = self.specs[-1]["removal"] if self.specs else {"method": "medic"}
        ended = self.ended if status in {"succeeded", "failed", "cancelled"} else {}
        return job_json(status, removal=removal, **ended)
