"""Ask the application over a connection without a socket: one request in, the whole answer out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from httptools import HttpResponseParser

from dynamo_sdk.services.openai import Backend, HttpLimits, OpenAIApp
from dynamo_sdk.services.openai.connections import Connections


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False

    def on_status(self, status: bytes) -> None:
        pass

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True

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
    lines = [f"{method or ('GET' if body is None else 'POST')} {quote(path)} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"content-length: {len(content)}"] if body is not None else []
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + (content if body is not None else b"")

    connections = Connections(app)
    connection, wire = connections.make(), Wire()
    connection.connection_made(wire)
    connection.data_received(request)
    if connections.tasks:
        await asyncio.wait(connections.tasks)
    connection.connection_lost(None)
    answer = Answer()
    parser = HttpResponseParser(answer)
    parser.feed_data(b"".join(wire.written))
    answer.status = parser.get_status_code()
    assert answer.is_complete
    return answer


class Wire(asyncio.Transport):
    """Keeps what is written; nobody is slow to read it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


def chat(content: str = "hi", **fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: object = "hi", **fields: object) -> dict[str, object]:
    return {"model": "demo", "prompt": prompt, **fields}
