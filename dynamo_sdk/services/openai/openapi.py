"""``GET /openapi.json``: written from the request structs themselves, so that it cannot fall behind."""

from __future__ import annotations

from functools import cache

import msgspec

from .errors import ErrorBody
from .protocol import ChatRequest, CompletionRequest, EmbeddingRequest

_REF = "#/components/schemas/{name}"
_POSTS: tuple[tuple[str, type[msgspec.Struct], str], ...] = (
    ("/v1/chat/completions", ChatRequest, "Continue a conversation"),
    ("/v1/completions", CompletionRequest, "Continue a text"),
    ("/v1/embeddings", EmbeddingRequest, "Turn texts into vectors"),
)
_GETS = (
    ("/v1/models", "List the models that can be served now"),
    ("/v1/models/{model}", "One model"),
    ("/health", "200 when requests can be answered, else 503 with the reason"),
    ("/live", "200 while the process runs"),
    ("/metrics", "Prometheus metrics of the frontend and its workers"),
    ("/openapi.json", "This document"),
)


@cache
def openapi_document() -> bytes:
    """OpenAPI 3.1, as JSON."""
    types = [struct for _, struct, _ in _POSTS] + [ErrorBody]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    errors = {"default": _response("An error, in OpenAI's shape", "ErrorBody")}
    paths: dict[str, object] = {}
    for path, struct, summary in _POSTS:
        body = {"required": True, "content": _json_content(struct.__name__)}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": body,
                "responses": {"200": {"description": "OK"}, **errors},
            }
        }
    for path, summary in _GETS:
        operation: dict[str, object] = {
            "summary": summary,
            "responses": {"200": {"description": "OK"}, **errors},
        }
        if "{model}" in path:
            operation["parameters"] = [
                {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths[path] = {"get": operation}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "dynamo_sdk", "version": "1", "description": "An OpenAI-compatible API."},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return msgspec.json.encode(document)


def _response(description: str, schema: str) -> dict[str, object]:
    return {"description": description, "content": _json_content(schema)}


def _json_content(schema: str) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=schema)}}}
