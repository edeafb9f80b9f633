"""A request in vLLM's words, and its outputs and errors in ours. Nothing here imports vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    LegTiming,
    TokenLogprobs,
    Usage,
)

from .handover import Params
from .tiers.sharing import hint

SEED_MASK = (1 << 63) - 1  # vLLM's seeds are signed
_REFUSALS = ("VLLMClientError", "ValueError", "TypeError", "OverflowError")
_FULL = ("QueueOverflowError", "MaxQueuedTokensError")


class Logprob(Protocol):
    """vLLM's ``Logprob``."""

    logprob: float
    rank: int | None


class CompletionOutput(Protocol):
    """The part of vLLM's ``CompletionOutput`` that we read."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None


class RequestOutput(Protocol):
    """The part of vLLM's ``RequestOutput`` that we read; some versions lack the last three."""

    outputs: Sequence[CompletionOutput]
    finished: bool


def sampling_arguments(
    request: GenerateRequest, *, is_handover: bool, kv_transfer: Params | None
) -> dict[str, object]:
    """Keyword arguments of vLLM's ``SamplingParams``.

    What an earlier leg generated is part of vLLM's prompt: it counts against the limits here, and for
    ``repetition_penalty``; presence and frequency penalties see only what this leg generates.
    """
    sampling, num_generated = request.sampling, request.num_generated_tokens
    max_tokens = 1 if is_handover else sampling.max_tokens - num_generated
    extra_args: dict[str, object] = {} if request.kv_source is None else hint(request.kv_source)
    if kv_transfer is not None:
        extra_args["kv_transfer_params"] = dict(kv_transfer)
    return {
        "max_tokens": max_tokens,
        "min_tokens": min(max_tokens, max(0, sampling.min_tokens - num_generated)),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": (sampling.seed + num_generated) & SEED_MASK if sampling.temperature > 0 else None,
        "logit_bias": dict(sampling.logit_bias) or None,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "logprobs": sampling.logprobs,
        "detokenize": False,
        "extra_args": extra_args or None,
    }


class ChunkMaker:
    """Makes the chunks of one leg from vLLM's deltas, of which each may hold several tokens."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self.num_tokens = 0

    def chunk(self, output: RequestOutput, ticket: KVTransferParams | None = None) -> GenerateChunk | None:
        """None when there is nothing new. ``ticket`` makes the last chunk a ``HANDOVER``.

        Raises ``EngineFailed`` and ``TransferError`` where vLLM ends the output by itself.
        """
        completion = output.outputs[0]
        token_ids = tuple(completion.token_ids)
        self.num_tokens += len(token_ids)
        logprobs = self._logprobs(completion, token_ids)
        if not output.finished:
            return GenerateChunk(token_ids, logprobs) if token_ids else None
        reason = self._finish_reason(completion.finish_reason)
        return GenerateChunk(
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=reason if ticket is None else FinishReason.HANDOVER,
            usage=Usage(
                num_prompt_tokens=self._request.num_prompt_tokens,
                num_output_tokens=self.num_tokens,
                num_cached_tokens=getattr(output, "num_cached_tokens", None) or 0,
            ),
            kv_transfer=ticket,
            timing=leg_timing(getattr(output, "metrics", None)),
        )

    def _logprobs(
        self, completion: CompletionOutput, token_ids: Iterable[int]
    ) -> tuple[TokenLogprobs, ...] | None:
        num_top = self._request.sampling.logprobs
        if num_top is None:
            return None
        entries = completion.logprobs or ()
        return tuple(
            token_logprobs(token_id, entry, num_top)
            for token_id, entry in zip(token_ids, entries, strict=True)
        )

    def _finish_reason(self, reason: str | None) -> FinishReason:
        if reason == "length":
            return FinishReason.LENGTH
        if reason == "abort":
            raise EngineFailed("vLLM aborted the request")
        if reason == "error":
            if self._request.kv_transfer is not None:
                raise TransferError("vLLM could not fetch the prompt's KV from the prefill worker")
            raise EngineFailed("vLLM ended the request with an error")
        return FinishReason.STOP


def token_logprobs(token_id: int, entry: Mapping[int, Logprob], num_top: int) -> TokenLogprobs:
    """vLLM lists the likeliest tokens and the one that was sampled, which may not be among them."""
    likeliest = sorted(entry.items(), key=lambda item: -item[1].logprob)
    top = tuple((token, logprob.logprob) for token, logprob in likeliest[:num_top])
    return TokenLogprobs(entry[token_id].logprob, top)


def leg_timing(metrics: object | None) -> LegTiming | None:
    """From vLLM's ``RequestStateStats``, whose ``_ts`` are monotonic; None where a version has none."""
    moments = [
        getattr(metrics, f"{name}_ts", 0.0) for name in ("queued", "scheduled", "first_token", "last_token")
    ]
    if not all(moments):
        return None
    queued_s, scheduled_s, first_token_s, last_token_s = moments
    return LegTiming(
        queue_s=max(0.0, scheduled_s - queued_s),
        prefill_s=max(0.0, first_token_s - scheduled_s),
        decode_s=max(0.0, last_token_s - first_token_s),
    )


def error_of(error: Exception) -> DynamoError:
    """What vLLM raised, as ours; by the names of its classes, which versions keep in different places."""
    if isinstance(error, DynamoError):
        return error
    names = {cls.__name__ for cls in type(error).__mro__}
    if names.intersection(_FULL):
        return Overloaded(f"vLLM's queue is full: {error}")
    if names.intersection(_REFUSALS):
        return InvalidRequest(f"vLLM refuses the request: {error}")
    cause = error.__cause__
    because = f" ({type(cause).__name__}: {cause})" if cause is not None else ""
    return EngineFailed(f"vLLM failed: {type(error).__name__}: {error}{because}")
