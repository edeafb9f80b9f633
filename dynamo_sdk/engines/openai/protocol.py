"""Token ids to and from ``/v1/completions``, streamed: the dialect of vLLM, which our own frontend
speaks too.

``return_token_ids`` asks for the ids of the answer, which plain OpenAI does not know: without them this
engine could only guess them from the text.
"""

from __future__ import annotations

import math

import msgspec

from dynamo_sdk.errors import (
    DynamoError,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from dynamo_sdk.types import FinishReason, GenerateChunk, GenerateRequest, TokenLogprobs, Usage

DATA = "data:"
DONE = "[DONE]"
_ID_PREFIX = "token_id:"
_SEED_MASK = (1 << 63) - 1


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _CachedTokens | None = None


class _ErrorBody(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: int | str | None = None


class Event(msgspec.Struct):
    """One event of a streamed answer."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _ErrorBody | str | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # as vLLM and SGLang call it
    context_length: int | None = None  # as we do


class ModelList(msgspec.Struct):
    """``GET /v1/models``."""

    data: list[_Model] = []


_events = msgspec.json.Decoder(Event)


def request_body(request: GenerateRequest, model: str) -> dict[str, object]:
    """The body of ``POST /v1/completions``. What is as by default is left out: servers refuse what they do
    not know. ``priority`` does not travel, which most servers refuse. Raises ``InvalidRequest``."""
    sampling, num_generated = request.sampling, request.num_generated_tokens
    optional: dict[str, tuple[object, object]] = {
        "top_p": (sampling.top_p, 1.0),
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "min_tokens": (max(0, sampling.min_tokens - num_generated), 0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "logit_bias": ({str(token): bias for token, bias in sampling.logit_bias.items()}, {}),
        "stop_token_ids": (list(sampling.stop_token_ids), []),
        "ignore_eos": (sampling.ignore_eos, False),
        "cache_salt": (request.cache_salt, None),
        "dynamo": ({"cache_salt": request.cache_salt}, {"cache_salt": None}),  # our own servers' place for it
        "logprobs": (sampling.logprobs, None),
        "return_tokens_as_token_ids": (sampling.logprobs is not None, False),
    }
    for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p)):
        if not math.isfinite(value):
            raise InvalidRequest(f"{name} is {value}", param=name)  # which JSON cannot say
    body: dict[str, object] = {
        "model": request.lora or model,
        "prompt": request.token_ids(),
        "max_tokens": sampling.max_tokens - num_generated,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if sampling.temperature > 0:
        body["seed"] = (sampling.seed + num_generated) & _SEED_MASK
    return body | {name: value for name, (value, default) in optional.items() if value != default}


def error_of(status: int, body: bytes, *, where: str) -> DynamoError:
    """What a server's refusal means here."""
    try:
        error = _events.decode(body).error
    except msgspec.MsgspecError:
        error = None
    if not isinstance(error, _ErrorBody):
        error = _ErrorBody(message=error or body[:200].decode(errors="replace"))
    return _meaning(status, f"{where} answered {status}: {error.message}", error.param)


def _meaning(status: int, message: str, param: str | None) -> DynamoError:
    match status:
        case 400 | 413 | 422:
            return InvalidRequest(message, param=param)
        case 404:
            return ModelNotFound(message)
        case 429:
            return Overloaded(message)
        case 503:
            return Unavailable(message)
        case _:
            return EngineFailed(message)


class AnswerReader:
    """Turns the lines of one streamed answer into chunks. The last one waits for the usage that follows it.

    ``is_over``: the server has said that nothing more comes.
    """

    def __init__(self, request: GenerateRequest, *, where: str) -> None:
        self.is_over = False
        self._request = request
        self._where = where
        self._num_tokens = 0
        self._last: GenerateChunk | None = None
        self._num_cached_tokens = 0

    def read(self, line: str) -> GenerateChunk | None:
        """A chunk, where the line makes one. Raises ``EngineFailed``, or what the server says."""
        if not line.startswith(DATA):
            return None
        data = line.removeprefix(DATA).strip()
        if data == DONE:
            return self._end()
        try:
            event = _events.decode(data)
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"{self._where} sent what is no completion: {error}") from error
        if event.error is not None:
            said = event.error if isinstance(event.error, _ErrorBody) else _ErrorBody(message=event.error)
            status = said.code if isinstance(said.code, int) else 500
            raise _meaning(status, f"{self._where} failed: {said.message}", said.param)
        if event.usage is not None and event.usage.prompt_tokens_details is not None:
            self._num_cached_tokens = event.usage.prompt_tokens_details.cached_tokens or 0
        return self._chunk(event.choices[0]) if event.choices else None

    def _chunk(self, choice: _Choice) -> GenerateChunk | None:
        if choice.token_ids is None and choice.finish_reason is None:
            raise EngineFailed(
                f"{self._where} answers without token ids; this engine needs a server that knows "
                "return_token_ids, such as vLLM or dynamo_sdk"
            )
        token_ids = tuple(choice.token_ids or ())
        self._num_tokens += len(token_ids)
        logprobs = self._logprobs(choice.logprobs, len(token_ids))
        if choice.finish_reason is None:
            return GenerateChunk(token_ids, logprobs) if token_ids else None
        if choice.finish_reason not in ("stop", "length"):
            raise EngineFailed(f"{self._where} ended the answer with {choice.finish_reason!r}")
        self._last = GenerateChunk(token_ids, logprobs, FinishReason(choice.finish_reason))
        return None

    def _end(self) -> GenerateChunk:
        if self._last is None:
            raise EngineFailed(f"{self._where} ended the stream without a reason")
        self.is_over = True
        usage = Usage(self._request.num_prompt_tokens, self._num_tokens, self._num_cached_tokens)
        return msgspec.structs.replace(self._last, usage=usage)

    def _logprobs(self, given: _Logprobs | None, num_tokens: int) -> tuple[TokenLogprobs, ...] | None:
        num_top = self._request.sampling.logprobs
        if num_top is None:
            return None
        sampled = [logprob or 0.0 for logprob in given.token_logprobs] if given is not None else []
        if len(sampled) != num_tokens:
            raise EngineFailed(f"{self._where} sent {len(sampled)} logprobs for {num_tokens} tokens")
        listed = (given.top_logprobs if given is not None else None) or [None] * num_tokens
        return tuple(
            TokenLogprobs(logprob, _likeliest(top or {}, num_top))
            for logprob, top in zip(sampled, listed, strict=True)
        )


def _likeliest(top: dict[str, float], num_top: int) -> tuple[tuple[int, float], ...]:
    """Alternatives that a server names by their text cannot be told apart, and are left out."""
    named = [(name.removeprefix(_ID_PREFIX), logprob) for name, logprob in top.items() if _ID_PREFIX in name]
    ids = [(int(number), logprob) for number, logprob in named if number.isdigit()]
    return tuple(sorted(ids, key=lambda entry: -entry[1])[:num_top])
