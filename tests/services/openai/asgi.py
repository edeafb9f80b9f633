"""Call the application without a server: one request in, the whole answer out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from dynamo_sdk.services.openai import Backend, HttpLimits, OpenAIApp
from dynamo_sdk.services.openai.exchange import Event


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        return dict(error)

    def events(self) -> list[Any]:
        """The stream's events, without the final ``[DONE]``, which must be there."""
        lines = self.body.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def call(
    backend: Backend | OpenAIApp,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """``body``: bytes as they are, anything else as JSON."""
    app = backend if isinstance(backend, OpenAIApp) else OpenAIApp(backend, limits=HttpLimits())
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer()
    events = [{"type": "http.request", "body": content, "more_body": False}]
    done = False

    async def receive() -> Event:
        if events:
            return dict(events.pop(0))
        if not done:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        nonlocal done
        if event["type"] == "http.response.start":
            assert not answer.status
            answer.status = event["status"]
            answer.headers = {name.decode(): value.decode() for name, value in event["headers"]}
        else:
            assert answer.status
            assert not done
            answer.body += event.get("body", b"")
            done = not event.get("more_body", False)

    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    await app(scope, receive, send)
    assert done
    return answer


def chat(content: str = "hi", **fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: object = "hi", **fields: object) -> dict[str, object]:
    return {"model": "demo", "prompt": prompt, **fields}
