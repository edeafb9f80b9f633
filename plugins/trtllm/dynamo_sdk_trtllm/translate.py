"""A request in TensorRT-LLM's words, and its outputs and errors in ours. Nothing here imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from dynamo_sdk.errors import (
    DynamoError,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    TransferError,
)
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    SamplingParams,
    TokenLogprobs,
    Usage,
)

SEED_MASK = (1 << 63) - 1
NORMAL_PRIORITY = 0.5
_REFUSALS = ("ValueError", "TypeError", "NotImplementedError", "OverflowError")
_LEAVES_MORE = ("length", "not_finished", None)
"""Finish reasons of a context leg whose token did not end the output."""


class Logprob(Protocol):
    """TensorRT-LLM's ``Logprob``."""

    logprob: float


class CompletionOutput(Protocol):
    """The part of TensorRT-LLM's ``CompletionOutput`` that we read. Both sequences are cumulative."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None


class RequestOutput(Protocol):
    """The part of TensorRT-LLM's ``RequestOutput`` that we read."""

    outputs: Sequence[CompletionOutput]
    finished: bool


def sampling_arguments(
    request: GenerateRequest, *, max_tokens: int, num_carried: int = 0
) -> dict[str, object]:
    """Keyword arguments of TensorRT-LLM's ``SamplingParams``: what the request needs, and no more, so that
    a version which lacks one refuses only the requests that need it.

    ``max_tokens``: of this leg; with the ``num_carried`` first tokens of a ticket, which count as its output.
    What was generated before is part of TensorRT-LLM's prompt. Raises ``InvalidRequest``.
    """
    sampling = request.sampling
    _require_sane(sampling)
    if sampling.logit_bias:
        raise InvalidRequest("the trtllm engine has no logit_bias", param="logit_bias")
    num_before = request.num_generated_tokens - num_carried
    min_tokens = min(max_tokens, sampling.min_tokens - num_before)
    is_greedy = sampling.temperature == 0 or sampling.top_k == 1
    wanted: dict[str, tuple[object, bool]] = {
        "min_tokens": (min_tokens, min_tokens > 0),
        "top_k": (1 if is_greedy else sampling.top_k, is_greedy or sampling.top_k > 0),
        "temperature": (sampling.temperature, not is_greedy),
        "top_p": (sampling.top_p, not is_greedy and sampling.top_p < 1),
        "min_p": (sampling.min_p, not is_greedy and sampling.min_p > 0),
        "seed": ((sampling.seed + request.num_generated_tokens) & SEED_MASK, not is_greedy),
        "presence_penalty": (sampling.presence_penalty, sampling.presence_penalty != 0),
        "frequency_penalty": (sampling.frequency_penalty, sampling.frequency_penalty != 0),
        "repetition_penalty": (sampling.repetition_penalty, sampling.repetition_penalty != 1),
        "stop_token_ids": (list(sampling.stop_token_ids), bool(sampling.stop_token_ids)),
        "ignore_eos": (True, sampling.ignore_eos),
        "logprobs": (sampling.logprobs, sampling.logprobs is not None),
    }
    needed = {name: value for name, (value, is_needed) in wanted.items() if is_needed}
    return {"max_tokens": max_tokens, **needed}


def _require_sane(sampling: SamplingParams) -> None:
    """What reaches a running batch can take all of it down."""
    limits = {
        "temperature": (sampling.temperature, 0.0, math.inf),
        "top_k": (sampling.top_k, 0.0, math.inf),
        "top_p": (sampling.top_p, 0.0, 1.0),
        "min_p": (sampling.min_p, 0.0, 1.0),
        "presence_penalty": (sampling.presence_penalty, -math.inf, math.inf),
        "frequency_penalty": (sampling.frequency_penalty, -math.inf, math.inf),
        "repetition_penalty": (sampling.repetition_penalty, 0.0, math.inf),
    }
    for name, (value, lowest, highest) in limits.items():
        if not (math.isfinite(value) and lowest <= value <= highest):
            raise InvalidRequest(f"{name} is {value}", param=name)
    if sampling.top_p == 0 or sampling.repetition_penalty == 0:
        name = "top_p" if sampling.top_p == 0 else "repetition_penalty"
        raise InvalidRequest(f"{name} is 0", param=name)


def priority_of(priority: int) -> float:
    """Ours is any integer, and smaller runs first; TensorRT-LLM's is from 0 to 1, and larger runs first."""
    return NORMAL_PRIORITY - priority / (2 * (1 + abs(priority)))


class ChunkMaker:
    """Makes the chunks of one leg from TensorRT-LLM's outputs, each of which repeats all before it.

    ``first_tokens``: those of a ticket, with which a decode leg's outputs begin, and which are known already.
    """

    def __init__(self, request: GenerateRequest, first_tokens: Sequence[int] = ()) -> None:
        self._request = request
        self._first_tokens = list(first_tokens)
        self._num_seen = len(first_tokens)

    @property
    def num_tokens(self) -> int:
        return self._num_seen - len(self._first_tokens)

    def chunk(self, output: RequestOutput, ticket: KVTransferParams | None = None) -> GenerateChunk | None:
        """None when there is nothing new. ``ticket`` makes the last chunk a ``HANDOVER``.

        Raises ``EngineFailed`` and ``TransferError`` where TensorRT-LLM ends the output by itself.
        """
        if not output.outputs:
            raise EngineFailed("TensorRT-LLM gave an output without a sequence")
        completion = output.outputs[0]
        cumulative = list(completion.token_ids)
        head = cumulative[: len(self._first_tokens)]
        if head != self._first_tokens[: len(head)]:
            raise TransferError(f"decode began with {head}, the ticket with {self._first_tokens}")
        token_ids = tuple(cumulative[self._num_seen :])
        logprobs = self._logprobs(completion, token_ids)
        self._num_seen += len(token_ids)
        if not output.finished:
            return GenerateChunk(token_ids, logprobs) if token_ids else None
        reason = finish_reason(completion.finish_reason)
        return GenerateChunk(
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=reason if ticket is None else FinishReason.HANDOVER,
            usage=Usage(
                num_prompt_tokens=self._request.num_prompt_tokens,
                num_output_tokens=self.num_tokens,
                num_cached_tokens=self._num_cached_tokens(output),
            ),
            kv_transfer=ticket,
        )

    def _num_cached_tokens(self, output: RequestOutput) -> int:
        """What was fetched for a decode leg counts as cached for TensorRT-LLM, not for us."""
        if self._first_tokens:
            return 0
        return min(self._request.num_prompt_tokens, int(getattr(output, "cached_tokens", None) or 0))

    def _logprobs(
        self, completion: CompletionOutput, token_ids: Sequence[int]
    ) -> tuple[TokenLogprobs, ...] | None:
        num_top = self._request.sampling.logprobs
        if num_top is None:
            return None
        entries = list(completion.logprobs or ())
        if len(entries) < len(token_ids):
            raise EngineFailed(f"TensorRT-LLM gave {len(entries)} logprobs for {len(token_ids)} tokens")
        newest = entries[len(entries) - len(token_ids) :]
        return tuple(
            token_logprobs(token_id, entry, num_top)
            for token_id, entry in zip(token_ids, newest, strict=True)
        )


def is_unfinished(completion: CompletionOutput) -> bool:
    """Whether a context leg leaves something to decode."""
    return completion.finish_reason in _LEAVES_MORE


def finish_reason(reason: str | None) -> FinishReason:
    if reason == "stop":
        return FinishReason.STOP
    if reason in _LEAVES_MORE:
        return FinishReason.LENGTH
    raise EngineFailed(f"TensorRT-LLM ended the request: {reason}")


def token_logprobs(token_id: int, entry: Mapping[int, Logprob], num_top: int) -> TokenLogprobs:
    """TensorRT-LLM lists the likeliest tokens and the one that was sampled, which may not be among them."""
    if token_id not in entry:
        raise EngineFailed(f"TensorRT-LLM gave no logprob for token {token_id}")
    likeliest = sorted(entry.items(), key=lambda item: -item[1].logprob)
    top = tuple((token, each.logprob) for token, each in likeliest[:num_top])
    return TokenLogprobs(entry[token_id].logprob, top)


def refusal_of(error: Exception) -> DynamoError:
    """What ``generate_async`` raised at once, before the engine had the request."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names.intersection(_REFUSALS):
        return InvalidRequest(f"TensorRT-LLM refuses the request: {error}")
    return failure_of(error, is_fetching=False)


def failure_of(error: Exception, *, is_fetching: bool) -> DynamoError:
    """What TensorRT-LLM raised while the request ran; ``is_fetching``: before decode's first token."""
    names = {cls.__name__ for cls in type(error).__mro__}
    what = f"{type(error).__name__}: {error}"
    if is_fetching and "RequestError" in names:
        return TransferError(f"TensorRT-LLM could not fetch the prompt's KV: {what}")
    if "QueueFull" in names:
        return Overloaded(f"TensorRT-LLM's queue is full: {error}")
    return EngineFailed(f"TensorRT-LLM failed: {what}")
