"""What can be asked for: every removal method with its settings, every architecture, and the limits of this service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any, get_args

from fastapi import APIRouter
from pydantic import Field, TypeAdapter

from api.bodies import JSON_LIMIT_BYTES
from api.dependencies import ServiceSettings
from jobs.models import Reply
from medic_core.config import PRESETS, RemovalConfig

router = APIRouter(tags=["registry"])


class Method(Reply):
    """A removal method: the JSON schema of its settings, and what each preset sets."""

    name: str
    description: str
    settings: dict[str, Any] = Field(serialization_alias="schema")
    presets: Mapping[str, Mapping[str, Any]]


class Methods(Reply):
    """Every removal method."""

    methods: tuple[Method, ...]


class ArchitectureEntry(Reply):
    """An architecture by the name that a job's spec takes. ``refused`` says why it cannot be repaired."""

    name: str
    family: str
    tensors: int
    parameters: int
    input_size: tuple[int, int]
    refused: str | None


class Architectures(Reply):
    """Every architecture."""

    architectures: tuple[ArchitectureEntry, ...]


class Limits(Reply):
    """What this service accepts; null: any number."""

    upload_bytes: int
    multipart_bytes: int
    json_bytes: int
    queued_jobs: int
    tenant_queued_jobs: int | None
    tenant_bytes: int | None
    requests_per_minute: int | None
    default_deadline_seconds: int
    retention_days: float | None = Field(description="What jobs made, and files, are kept for; null: for ever.")


@router.get("/methods", summary="List the removal methods", operation_id="list_methods")
def list_methods() -> Methods:
    """Each with the schema of ``removal`` in a job's spec."""
    return Methods(methods=tuple(_method(config) for config in get_args(RemovalConfig)))


def _method(config: type[RemovalConfig]) -> Method:
    schema = TypeAdapter(config).json_schema()
    names = {field.name for field in fields(config)}
    presets = {
        preset: {name: value for name, value in values.items() if name in names}
        for preset, values in PRESETS.items()
        if "preset" in names
    }
    return Method(name=config.method, description=schema.pop("description"), settings=schema, presets=presets)


@router.get("/architectures", summary="List the architectures", operation_id="list_architectures")
def list_architectures() -> Architectures:
    """Those that are refused are there too, with the reason."""
    text = files("medic_core").joinpath("architectures.json").read_text(encoding="utf-8")
    return Architectures.model_validate({"architectures": json.loads(text)})


@router.get("/limits", summary="Tell the limits", operation_id="get_limits")
def get_limits(settings: ServiceSettings) -> Limits:
    """What is larger is refused with 413, or 503 when too many jobs wait."""
    return Limits(
        upload_bytes=settings.upload_limit_bytes,
        multipart_bytes=settings.multipart_limit_bytes,
        json_bytes=JSON_LIMIT_BYTES,
        queued_jobs=settings.queue_limit,
        tenant_queued_jobs=settings.tenant_queue_limit,
        tenant_bytes=settings.tenant_bytes_limit,
        requests_per_minute=settings.requests_per_minute,
        default_deadline_seconds=settings.deadline_seconds,
        retention_days=settings.retention_days,
    )
