"""What clients send, as msgspec structs: strict types, unknown keys ignored.

Types are checked while decoding; ranges and what fits together in ``validation``. Fields that this server
understands but cannot honour are declared so that they are refused, never silently dropped.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from dynamo_sdk.types.plan import Json

ChatRole = Literal["system", "developer", "user", "assistant", "tool"]


class Extensions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Our own part of a request, under the key ``dynamo``. ``priority``: smaller runs first.
    ``ledger``: say in the answer where the time went. ``explain``: say in it why the request went where it
    went. ``session``: requests of one session belong together. ``tenant``: whose share it is
    when all workers are full. ``worker``: the id of the one to take it, for
    the router ``direct``."""

    cache_salt: str | None = None
    priority: int = 0
    ledger: bool = False
    explain: bool = False
    session: str | None = None
    tenant: str | None = None
    worker: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None


class TypedOption(msgspec.Struct, kw_only=True):
    """``{"type": ...}`` with whatever else the type needs."""

    type: str


class TextPart(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    role: ChatRole
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Json]] | None = None
    tool_call_id: str | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """What chat and text completions share. The second half is what users of vLLM know."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    dynamo: Extensions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None

    best_of: int | None = None
    use_beam_search: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: Json = None
    guided_json: Json = None
    guided_regex: Json = None
    guided_choice: Json = None
    guided_grammar: Json = None


class ChatRequest(SamplingFields, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Json] | None = None
    add_generation_prompt: bool | None = None

    response_format: TypedOption | None = None
    tools: list[Json] | None = None
    tool_choice: Json = None
    functions: list[Json] | None = None
    function_call: Json = None
    modalities: list[str] | None = None
    audio: Json = None
    web_search_options: Json = None
    continue_final_message: bool | None = None
    chat_template: str | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    suffix: str | None = None
    response_format: TypedOption | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
