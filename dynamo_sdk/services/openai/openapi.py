"""``GET /openapi.json``: written from the request structs themselves, so that it cannot fall behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import msgspec

from .errors import ErrorBody
from .protocol import ChatRequest, CompletionRequest, EmbeddingRequest

_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, as its readers know it. ``body``: the JSON it takes, None = none."""

    method: str
    path: str
    summary: str
    body: type[msgspec.Struct] | None = None


_OPERATIONS = (
    Operation("POST", "/v1/chat/completions", "Continue a conversation", ChatRequest),
    Operation("POST", "/v1/completions", "Continue a text", CompletionRequest),
    Operation("POST", "/v1/embeddings", "Turn texts into vectors", EmbeddingRequest),
    Operation("GET", "/v1/models", "List the models that can be served now"),
    Operation("GET", "/v1/models/{model}", "One model"),
    Operation("GET", "/health", "200 when requests can be answered, else 503 with the reason"),
    Operation("GET", "/live", "200 while the process runs"),
    Operation("GET", "/metrics", "Prometheus metrics of the frontend and its workers"),
    Operation("GET", "/openapi.json", "This document"),
)


@cache
def openapi_document(added: tuple[Operation, ...] = ()) -> bytes:
    """OpenAPI 3.1, as JSON. ``added``: routes beside those that are always there."""
    operations = (*_OPERATIONS, *added)
    bodies = [operation.body for operation in operations if operation.body is not None]
    _, schemas = msgspec.json.schema_components([*bodies, ErrorBody], ref_template=_REF)
    paths: dict[str, dict[str, object]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "dynamo_sdk", "version": "1", "description": "An OpenAI-compatible API."},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return msgspec.json.encode(document)


def _described(operation: Operation) -> dict[str, object]:
    responses = {
        "200": {"description": "OK"},
        "default": {"description": "An error, in OpenAI's shape", "content": _json_content(ErrorBody)},
    }
    described: dict[str, object] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json_content(operation.body)}
    if "{model}" in operation.path:
        described["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described


def _json_content(body: type[msgspec.Struct]) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=body.__name__)}}}
