"""What a request says about where it should go, by body or header, and what it is told of where it went."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dynamo_sdk.routing.explanation import Explanation
from dynamo_sdk.services.openai.backend import BackendCall, ChunkSink, GenerateOptions, RoutingHints
from dynamo_sdk.types import GenerateRequest, Role, WorkerId

from .asking import call
from .fakes import ScriptedBackend

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


def chat(**fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": "hi"}], **fields}


@dataclass
class Hinted(ScriptedBackend):
    """Keeps the hints, and explains where it is asked to."""

    hints: list[RoutingHints] = field(default_factory=list)

    def generate(self, request: GenerateRequest, sink: ChunkSink, *, options: GenerateOptions) -> BackendCall:
        self.hints.append(options.hints)
        if options.hints.explanations is not None:
            options.hints.explanations.append(
                Explanation(pool=Role.AGGREGATED, worker=WorkerId("w"), reason="it is there", num_tokens=3)
            )
        return super().generate(request, sink, options=options)


async def test_the_body_counts_more_than_a_header() -> None:
    backend = Hinted()
    headers = {"X-Dynamo-Session-Id": "from header", "x-tenant-id": "acme"}
    await call(backend, CHAT, chat(), headers=headers)
    await call(backend, CHAT, chat(dynamo={"session": "mine", "worker": "w"}), headers=headers)
    await call(backend, CHAT, chat())
    said = [(hints.session, hints.tenant, hints.worker) for hints in backend.hints]
    assert said == [("from header", "acme", None), ("mine", "acme", "w"), (None, None, None)]


async def test_an_explanation_comes_back_when_asked() -> None:
    answer = await call(Hinted(), CHAT, chat(dynamo={"explain": True}))
    [explanation] = answer.json()["dynamo"]["explain"]
    assert (explanation["worker"], explanation["reason"]) == ("w", "it is there")
    assert "ledger" not in answer.json()["dynamo"]
    assert "dynamo" not in (await call(Hinted(), CHAT, chat())).json()


async def test_a_stream_explains_in_its_last_event() -> None:
    answer = await call(Hinted(), CHAT, chat(stream=True, dynamo={"explain": True}))
    *others, last = answer.events()
    assert last["dynamo"]["explain"][0]["worker"] == "w"
    assert not any("dynamo" in event for event in others)
