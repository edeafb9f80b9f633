"""Where requests go, and how one is written: an OpenAI endpoint as an HTTP/1.1 request in bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dynamo_sdk import __version__
from dynamo_sdk.errors import ConfigError

from .prompts import PromptSource
from .workload import Ask


class Endpoint(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"


_PATHS = {Endpoint.CHAT: "/chat/completions", Endpoint.COMPLETIONS: "/completions"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server. ``prefix``: the path of its API, ``/v1`` unless the URL says more; ``credential``: the value
    of the Authorization header, "" without one."""

    host: str
    port: int
    is_tls: bool
    prefix: str
    credential: str = ""

    @classmethod
    def parse(cls, url: str, *, api_key: str | None = None) -> Target:
        """``http://HOST[:PORT][/PATH][/v1]``. Raises ``ConfigError``."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--url: {url!r} is no URL: {error}") from error
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ConfigError(f"--url: {url!r} is no http or https URL, such as http://127.0.0.1:8000")
        credential = ""
        if api_key is not None:
            credential = f"Bearer {api_key}"
        elif parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}"
            credential = f"Basic {base64.b64encode(pair.encode()).decode()}"
        if not credential.isprintable() or not credential.isascii():
            raise ConfigError("--api-key: holds characters that no HTTP header may")
        path = parts.path.rstrip("/")
        return cls(
            host=parts.hostname,
            port=port or _DEFAULT_PORTS[parts.scheme],
            is_tls=parts.scheme == "https",
            prefix=path if path.endswith("/v1") else f"{path}/v1",
            credential=credential,
        )

    @property
    def url(self) -> str:
        """Where the API is, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.is_tls else ''}://{host}:{self.port}{self.prefix}"

    def head(self, method: str, path: str) -> str:
        """The request line and all headers but those of the body, without the empty line."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.prefix}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            f"User-Agent: dynamo-sdk-bench/{__version__}",
            *([f"Authorization: {self.credential}"] if self.credential else []),
        ]
        return "\r\n".join(lines)

    def get(self, path: str) -> bytes:
        return f"{self.head('GET', path)}\r\nAccept: application/json\r\n\r\n".encode()


class RequestWriter:
    """Turns an ``Ask`` into bytes for the wire. ``extra`` fields are sent as they are and win over ours."""

    def __init__(
        self,
        target: Target,
        *,
        endpoint: Endpoint,
        model: str,
        prompts: PromptSource,
        extra: Mapping[str, Any],
    ) -> None:
        head = target.head("POST", _PATHS[endpoint])
        self._head = (
            f"{head}\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: "
        )
        self._is_chat = endpoint is Endpoint.CHAT
        self._fields = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        self._prompts = prompts
        self._extra = dict(extra)

    def write(self, ask: Ask) -> bytes:
        """A whole HTTP request."""
        if ask.hash_ids:
            prompt = self._prompts.shared(ask.hash_ids, ask.index, ask.num_input_tokens)
        else:
            prompt = self._prompts.distinct(ask.index, ask.num_input_tokens)
        asked = {"messages": [{"role": "user", "content": prompt}]} if self._is_chat else {"prompt": prompt}
        fields = {**self._fields, "max_tokens": ask.num_output_tokens, **asked, **self._extra}
        body = msgspec.json.encode(fields)
        return f"{self._head}{len(body)}\r\n\r\n".encode() + body
