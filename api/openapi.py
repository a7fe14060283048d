"""The OpenAPI document: what FastAPI cannot see by itself, since bodies are read by hand and errors share one shape."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.errors import PROBLEM_JSON, ProblemDocument
from jobs.models import JobSpec

_COMPONENTS = "#/components/schemas/"
_SPEC = {"$ref": f"{_COMPONENTS}JobSpec-Input"}


_PROBLEM: Mapping[str, Any] = {PROBLEM_JSON: {"schema": {"$ref": f"{_COMPONENTS}ProblemDocument"}}}
ANY_PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"description": "Any other error", "content": _PROBLEM}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the errors of a route."""
    return {status: {"description": HTTPStatus(status).phrase, "content": _PROBLEM} for status in statuses}


def body(media_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Document a request body."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def form(required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """Document a multipart form by the schemas of its parts."""
    properties = {**required, **optional}
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return body("multipart/form-data", schema)


FILE_PART = {"type": "string", "contentMediaType": "application/octet-stream"}
SPEC_PART = {"type": "string", "contentMediaType": "application/json", "description": "A job's spec without file ids."}
SPEC_BODY = body("application/json", _SPEC)
METADATA_PARAMETER = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "metadata[key]=value: jobs that carry all of these.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


def document(app: FastAPI) -> dict[str, Any]:
    """Make the document, with the schemas that routes refer to by hand."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        spec = JobSpec.model_json_schema(ref_template=_COMPONENTS + "{model}-Input")
        inner = spec.pop("$defs")
        schemas = made["components"]["schemas"]
        schemas |= {f"{name}-Input": schema for name, schema in {**inner, "JobSpec": spec}.items()}
        error = ProblemDocument.model_json_schema(ref_template=_COMPONENTS + "{model}")
        schemas["Problem"] = error.pop("$defs")["Problem"]
        schemas["ProblemDocument"] = error
        app.openapi_schema = made
    return app.openapi_schema
