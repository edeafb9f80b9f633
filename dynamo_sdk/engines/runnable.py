"""What a leg must be so that it can run, and how much of it there is; for engines that wrap others."""

from __future__ import annotations

from dynamo_sdk.errors import ContextLengthExceeded, InvalidRequest
from dynamo_sdk.types import GenerateRequest, Role


def known_tokens(request: GenerateRequest, *, context_length: int) -> list[int]:
    """Prompt and generated tokens. Raises ``InvalidRequest`` for what can never run."""
    try:
        tokens = request.token_ids()
    except ValueError:
        raise InvalidRequest("the prompt is no packed token ids", param="prompt") from None
    if not request.num_prompt_tokens:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if len(tokens) >= context_length:
        raise ContextLengthExceeded(
            f"the prompt has {len(tokens)} tokens; this model takes at most {context_length - 1}",
            param="prompt",
        )
    if request.sampling.max_tokens <= request.num_generated_tokens:
        raise InvalidRequest(
            f"max_tokens is {request.sampling.max_tokens}, "
            f"and {request.num_generated_tokens} tokens are already generated",
            param="max_tokens",
        )
    return tokens


def num_tokens_left(request: GenerateRequest, *, context_length: int) -> int:
    """How many more tokens there may be: by the request, and by the context."""
    num_known = request.num_prompt_tokens + request.num_generated_tokens
    return min(request.sampling.max_tokens - request.num_generated_tokens, context_length - num_known)


def is_handed_over(request: GenerateRequest, *, context_length: int) -> bool:
    """Whether a prefill leg leaves something to decode, unless its first token ends the output."""
    return request.role is Role.PREFILL and num_tokens_left(request, context_length=context_length) > 1
