"""Which requests the engine can run at all; what the scheduler checks itself (length, id) is not here."""

from __future__ import annotations

import math

import numpy as np

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.types import GenerateRequest, PackedTokens, SamplingParams


def check_request(request: GenerateRequest, *, vocab_size: int) -> None:
    """Raise ``InvalidRequest``, naming the field, for what would fail or surprise inside a step."""
    check_prompt(request.prompt, vocab_size=vocab_size)
    _check_tokens("generated", request.generated, vocab_size)
    _check_sampling(request.sampling, vocab_size)


def check_prompt(prompt: PackedTokens, *, vocab_size: int) -> None:
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    _check_tokens("prompt", prompt, vocab_size)


def _check_tokens(field: str, packed: PackedTokens, vocab_size: int) -> None:
    if len(packed) % 4:
        raise InvalidRequest(f"{field} is not a whole number of packed tokens", param=field)
    if packed and (largest := int(np.frombuffer(packed, dtype="<u4").max())) >= vocab_size:
        raise InvalidRequest(
            f"{field} has token {largest}, the model's tokens are 0..{vocab_size - 1}", param=field
        )


def _check_sampling(params: SamplingParams, vocab_size: int) -> None:
    def require(is_fine: bool, field: str, allowed: str) -> None:
        if not is_fine:
            raise InvalidRequest(f"{field} must be {allowed}, not {getattr(params, field)}", param=field)

    require(params.max_tokens >= 1, "max_tokens", "at least 1")
    require(params.min_tokens >= 0, "min_tokens", "0 or more")
    require(0.0 <= params.temperature < math.inf, "temperature", "0 or more")
    require(params.top_k >= 0, "top_k", "0 (off) or more")
    require(0.0 < params.top_p <= 1.0, "top_p", "more than 0 and at most 1")
    require(0.0 <= params.min_p <= 1.0, "min_p", "from 0 to 1")
    require(0.0 < params.repetition_penalty < math.inf, "repetition_penalty", "more than 0")
    require(math.isfinite(params.presence_penalty), "presence_penalty", "a finite number")
    require(math.isfinite(params.frequency_penalty), "frequency_penalty", "a finite number")
    require(params.logprobs is None or params.logprobs >= 0, "logprobs", "None, 0 or more")
    require(all(map(math.isfinite, params.logit_bias.values())), "logit_bias", "finite numbers")
    for token_id in params.logit_bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias has token {token_id}, the model's tokens are 0..{vocab_size - 1}",
                param="logit_bias",
            )
