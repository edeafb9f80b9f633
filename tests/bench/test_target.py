from __future__ import annotations

import json
from typing import Any

import pytest

from dynamo_sdk.bench.prompts import PromptSource
from dynamo_sdk.bench.target import Endpoint, RequestWriter, Target
from dynamo_sdk.bench.workload import Ask
from dynamo_sdk.errors import ConfigError

PROMPTS = PromptSource(["a", "b", "c"], seed=1, block_tokens=4)
TARGET = Target.parse("http://localhost:8000", api_key="key")


def written(ask: Ask, endpoint: Endpoint = Endpoint.CHAT, **extra: Any) -> tuple[list[str], dict[str, Any]]:
    writer = RequestWriter(TARGET, endpoint=endpoint, model="m", prompts=PROMPTS, extra=extra)
    head, body = writer.write(ask).split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert f"Content-Length: {len(body)}" in lines
    return lines, json.loads(body)


def ask(**fields: Any) -> Ask:
    return Ask(index=5, due_s=None, num_input_tokens=6, num_output_tokens=9, **fields)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://api.example.com/proxy", "https://api.example.com:443/proxy/v1"),
        ("http://user:secret@[::1]", "http://[::1]:80/v1"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert Target.parse(url).url == shown


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:99999"])
def test_what_is_no_url_is_the_users_error(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        Target.parse(url)


def test_credentials() -> None:
    assert Target.parse("http://u:p@host").credential == "Basic dTpw"
    assert Target.parse("http://u:p@host", api_key="k").credential == "Bearer k"
    with pytest.raises(ConfigError, match="--api-key"):
        Target.parse("http://host", api_key="k\r\nX: y")


def test_a_chat_request() -> None:
    lines, body = written(ask(), ignore_eos=True)
    assert lines[:2] == ["POST /v1/chat/completions HTTP/1.1", "Host: localhost:8000"]
    assert "Authorization: Bearer key" in lines
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "messages": [{"role": "user", "content": PROMPTS.distinct(5, 6)}],
        "ignore_eos": True,
    }


def test_a_completion_of_a_trace() -> None:
    lines, body = written(ask(hash_ids=(1, 2)), Endpoint.COMPLETIONS, max_tokens=1)
    assert lines[0] == "POST /v1/completions HTTP/1.1"
    assert body["prompt"] == PROMPTS.shared((1, 2), 5, 6)
    assert body["max_tokens"] == 1, "extra fields win"
