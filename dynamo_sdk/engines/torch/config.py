"""What a deploy file may say about the ``torch`` engine (``services.X.args``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dynamo_sdk.kv import OnboardingRule
from dynamo_sdk.plugins.config import PluginConfig


class TorchConfig(PluginConfig):
    """Every default works for a small model on a laptop.

    Memory for the KV cache is ``num_blocks``, or what fits into ``kv_memory_bytes``, or (neither given) as
    much as ``max_num_seqs`` full contexts need, capped by a share of the device's free memory.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on the CPU, what the model was saved in on a GPU"
    )
    block_size: int = Field(default=16, ge=1, le=1024, description="tokens per KV block")
    num_blocks: int | None = Field(default=None, ge=1)
    kv_memory_bytes: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=64, ge=1, description="sequences in one step")
    max_num_batched_tokens: int = Field(default=2048, ge=1, description="tokens in one step")
    max_num_waiting: int = Field(
        default=4096, ge=1, description="requests beyond this are refused as overload"
    )
    context_length: int | None = Field(default=None, ge=2, description="shorter than the model's own")
    enable_prefix_caching: bool = True
    kv_onboarding: OnboardingRule = Field(
        default="measured",
        description="load from KV tiers what was measured to cost less than computing, or whatever is there",
    )
    num_threads: int | None = Field(default=None, ge=1, description="CPU threads of one step; None = torch's")

    @property
    def says_kv_memory(self) -> bool:
        """How much memory to take for the KV cache was said, not guessed."""
        return self.num_blocks is not None or self.kv_memory_bytes is not None

    @model_validator(mode="after")
    def _a_step_holds_all_sequences(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence computes a token per step"
            )
        return self
