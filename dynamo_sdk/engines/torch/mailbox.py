"""``SamplingMailbox``: a request's tokens on their way to its consumer, and at hand for the sampler."""

from __future__ import annotations

from dynamo_sdk.engines.mailbox import Mailbox
from dynamo_sdk.types import FinishReason, GenerateRequest, TokenLogprobs, unpack_tokens

from .loras import LoraWeights
from .sampler import SamplingRow


class SamplingMailbox(Mailbox):
    """``sampling`` sees the output grow; it includes what earlier legs generated. ``lora`` is the request's
    adapter."""

    __slots__ = ("_output", "lora", "sampling")

    def __init__(
        self,
        request: GenerateRequest,
        *,
        arrival_s: float,
        eos_token_ids: tuple[int, ...],
        lora: LoraWeights | None = None,
    ) -> None:
        super().__init__(request, arrival_s=arrival_s)
        self.lora = lora
        params = request.sampling
        self._output = unpack_tokens(request.generated)
        self.sampling = SamplingRow(
            params=params,
            prompt=unpack_tokens(request.prompt),
            output=self._output,
            end_ids=params.stop_token_ids + (() if params.ignore_eos else eos_token_ids),
        )

    def put(
        self,
        token_id: int,
        logprobs: TokenLogprobs | None,
        finish_reason: FinishReason | None,
        *,
        num_cached_tokens: int,
        now_s: float,
    ) -> None:
        self._output.append(token_id)
        super().put(token_id, logprobs, finish_reason, num_cached_tokens=num_cached_tokens, now_s=now_s)
