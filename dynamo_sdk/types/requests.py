"""What a worker is asked to do. Below the frontend nothing knows HTTP or text."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .kv_transfer import KVSource, KVTransferParams
from .tokens import NO_TOKENS, PackedTokens, num_tokens, unpack_tokens


class Role(StrEnum):
    """The part of a generation that a worker plays, and that one request asks of it."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. Defaults are OpenAI's, except that nothing is random at ``temperature=0``.

    ``seed``: the token at position ``p`` of the output is a pure function of (logits, seed, p); the
    frontend always sets it for sampled requests, so that a request can move between workers.
    ``logprobs``: None = none; k >= 0 = the sampled token's logprob and the k most likely ones.
    Logprobs are taken from the model's raw distribution (log-softmax of the logits, before penalties,
    temperature and truncation).
    Penalties count prompt and output for ``repetition_penalty``, output only for the other two.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end tokens; the stop token is emitted
    ignore_eos: bool = False
    logprobs: int | None = None


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One generation, from the frontend to a worker's engine.

    ``prompt`` and ``generated`` are packed ids (see ``types.tokens``). ``generated`` are tokens that an
    earlier leg already produced: they count against ``max_tokens``, for penalties and for the seed's
    position, and are not emitted again. ``kv_source``: where blocks of it may be read instead of computed.
    """

    request_id: str
    model: str
    prompt: PackedTokens
    sampling: SamplingParams
    generated: PackedTokens = NO_TOKENS
    role: Role = Role.AGGREGATED
    kv_transfer: KVTransferParams | None = None
    lora: str | None = None
    cache_salt: str | None = None
    priority: int = 0  # smaller runs first
    dp_rank: int | None = None
    decision_id: str | None = None
    kv_source: KVSource | None = None

    @property
    def served_name(self) -> str:
        """Of what a worker must have to run it: the adapter, or the model itself."""
        return self.lora or self.model

    @property
    def num_prompt_tokens(self) -> int:
        return num_tokens(self.prompt)

    @property
    def num_generated_tokens(self) -> int:
        return num_tokens(self.generated)

    def token_ids(self) -> list[int]:
        """Prompt and generated tokens, unpacked: everything whose KV the engine needs."""
        return unpack_tokens(self.prompt) + unpack_tokens(self.generated)


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One text to embed, as packed token ids."""

    request_id: str
    model: str
    prompt: PackedTokens
    lora: str | None = None

    @property
    def served_name(self) -> str:
        """As of ``GenerateRequest``."""
        return self.lora or self.model


class EmbedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """``vector``: float32, ``hidden_size`` numbers, L2-normalised."""

    vector: list[float]
    num_prompt_tokens: int
