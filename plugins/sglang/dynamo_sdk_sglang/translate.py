"""A request in SGLang's words, and its outputs and errors in ours. Nothing here imports SGLang."""

from __future__ import annotations

from typing import Any

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
    LegTiming,
    TokenLogprobs,
    Usage,
)

from .handover import Meeting
from .messages import Last, Output, Problem

SEED_MASK = (1 << 63) - 1  # SGLang's seeds are signed
_REFUSALS = frozenset({"ValueError", "TypeError", "OverflowError"})
_BAD_REQUEST, _FULL = 400, frozenset({429, 503})


def generate_arguments(
    request: GenerateRequest,
    tokens: list[int],
    *,
    num_tokens_left: int,
    meeting: Meeting | None,
    seeded_vocab_size: int | None = None,
) -> dict[str, Any]:
    """Arguments of SGLang's ``async_generate``, but for ``rid``; ``tokens`` are all that are known.

    ``seeded_vocab_size``: None where SGLang ignores seeds. Raises ``InvalidRequest``.
    """
    arguments: dict[str, Any] = {
        "input_ids": tokens,
        "sampling_params": sampling_params(request, num_tokens_left, seeded_vocab_size),
        "stream": True,
        "priority": request.priority,
    }
    if request.dp_rank is not None:
        arguments["routed_dp_rank"] = request.dp_rank
    if request.lora is not None:
        arguments["lora_path"] = request.lora
    if request.cache_salt is not None:
        arguments["cache_salt"] = request.cache_salt
    if request.sampling.logprobs is not None:
        arguments |= {"return_logprob": True, "top_logprobs_num": request.sampling.logprobs}
    if meeting is not None:
        arguments |= {
            "bootstrap_host": meeting.host,
            "bootstrap_port": meeting.port,
            "bootstrap_room": meeting.room,
        }
        if meeting.dp_rank is not None:
            arguments["disagg_prefill_dp_rank"] = meeting.dp_rank
    return arguments


def sampling_params(
    request: GenerateRequest, num_tokens_left: int, seeded_vocab_size: int | None
) -> dict[str, Any]:
    """What an earlier leg generated is part of SGLang's prompt, which its penalties do not see."""
    sampling = request.sampling
    if sampling.min_p and seeded_vocab_size is not None:
        raise InvalidRequest(
            "SGLang knows no min_p together with seeds; unset enable_deterministic_inference to have it",
            param="min_p",
        )
    params: dict[str, Any] = {
        "max_new_tokens": num_tokens_left,
        "min_new_tokens": min(num_tokens_left, max(0, sampling.min_tokens - request.num_generated_tokens)),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "no_stop_trim": True,  # whoever makes text of the tokens knows what not to show
    }
    if sampling.temperature > 0:
        params["sampling_seed"] = sampling.seed & SEED_MASK
        if seeded_vocab_size is not None:
            # Where all of a batch is unlimited, chances are dealt by token, else by rank; so that company
            # changes nothing, nothing is unlimited.
            params["top_k"] = sampling.top_k or seeded_vocab_size
    if sampling.stop_token_ids:
        params["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return params


class ChunkMaker:
    """Makes the chunks of one leg from SGLang's deltas, of which each may hold several tokens.

    ``is_over`` after the last one, which may come before SGLang's: with ``ignore_eos`` it stops at nothing,
    and we do at the request's own stop tokens.
    """

    def __init__(self, request: GenerateRequest, *, is_handover: bool) -> None:
        sampling = request.sampling
        self._request = request
        self._is_handover = is_handover
        self._stops = frozenset(sampling.stop_token_ids if sampling.ignore_eos else ())
        self._num_before_stops = sampling.min_tokens - request.num_generated_tokens
        self._num_tokens = 0
        self.is_over = False

    def chunk(self, output: Output) -> GenerateChunk | None:
        """None when there is nothing new. Raises what SGLang ends the leg with."""
        last, token_ids = output.last, output.token_ids
        if last is not None and last.finish.get("type") == "abort":
            raise abort_of(last.finish, is_leg=self._request.kv_transfer is not None)
        has_stopped = False
        for place, token_id in enumerate(token_ids if self._stops else ()):
            if token_id in self._stops and self._num_tokens + place + 1 > self._num_before_stops:
                token_ids, has_stopped = token_ids[: place + 1], True
                break
        self._num_tokens += len(token_ids)
        logprobs = self._logprobs(output, len(token_ids))
        if last is None and not has_stopped:
            return GenerateChunk(tuple(token_ids), logprobs) if token_ids else None
        self.is_over = True
        return GenerateChunk(
            token_ids=tuple(token_ids),
            logprobs=logprobs,
            finish_reason=self._finish_reason(last, has_stopped=has_stopped),
            usage=Usage(
                num_prompt_tokens=self._request.num_prompt_tokens,
                num_output_tokens=self._num_tokens,
                num_cached_tokens=output.num_cached_tokens,
            ),
            timing=leg_timing(last),
        )

    def _finish_reason(self, last: Last | None, *, has_stopped: bool) -> FinishReason:
        if self._is_handover:
            return FinishReason.HANDOVER
        if has_stopped or last is None or last.finish.get("type") != "length":
            return FinishReason.STOP
        return FinishReason.LENGTH

    def _logprobs(self, output: Output, num_tokens: int) -> tuple[TokenLogprobs, ...] | None:
        num_top = self._request.sampling.logprobs
        if num_top is None:
            return None
        chosen = (output.logprobs or [])[:num_tokens]
        if len(chosen) != num_tokens:
            raise EngineFailed(f"SGLang gave {len(chosen)} logprobs for {num_tokens} tokens")
        tops = output.top if num_top and output.top else [()] * num_tokens
        return tuple(
            TokenLogprobs(logprob, tuple((token, value) for value, token, *_ in top or ()))
            for (logprob, *_), top in zip(chosen, tops, strict=False)
        )


def leg_timing(last: Last | None) -> LegTiming | None:
    """None where SGLang does not say."""
    if last is None or not (last.received_s and last.scheduled_s and last.first_token_s and last.finished_s):
        return None
    return LegTiming(
        queue_s=max(0.0, last.scheduled_s - last.received_s),
        prefill_s=max(0.0, last.first_token_s - last.scheduled_s),
        decode_s=max(0.0, last.finished_s - last.first_token_s),
    )


def abort_of(finish: dict[str, Any], *, is_leg: bool) -> DynamoError:
    """Why SGLang aborted a request. ``is_leg``: of a hand-over, where most failures are the KV's."""
    status, text = finish.get("status_code"), finish.get("message") or "no reason given"
    if status == _BAD_REQUEST:
        return InvalidRequest(f"SGLang refuses the request: {text}")
    if status in _FULL:
        return Overloaded(f"SGLang's queue is full: {text}")
    if is_leg:
        return TransferError(f"SGLang could not hand the prompt's KV over: {text}")
    return EngineFailed(f"SGLang aborted the request: {text}")


def error_of(problem: Problem) -> DynamoError:
    """What SGLang raised, as ours."""
    if _REFUSALS.intersection(problem.kinds):
        return InvalidRequest(f"SGLang refuses the request: {problem.text}")
    return EngineFailed(f"SGLang failed: {problem.kinds[0]}: {problem.text}")
