"""One request to each side, to hold them to the same work before they are timed."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

from benchmarks.side_by_side.stacks import Stack


class NotTheSameWork(Exception):
    """An answer differs from what was asked in a way that would make the comparison unfair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """``num_events`` of a stream includes those without text."""

    num_prompt_tokens: int
    num_events: int


def ask(stack: Stack, body: str) -> Probe:
    """Raises `NotTheSameWork` unless ``max_tokens`` tokens came back."""
    fields = json.loads(body)
    if fields["stream"]:
        fields["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.port}/v1/chat/completions",
        data=json.dumps(fields).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    usage = json.loads(events[-1] if events else text)["usage"]
    if usage["completion_tokens"] != fields["max_tokens"]:
        raise NotTheSameWork(f"{stack.name}: {usage} for max_tokens {fields['max_tokens']}")
    return Probe(num_prompt_tokens=usage["prompt_tokens"], num_events=max(0, len(events) - 1))
