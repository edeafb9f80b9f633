"""What a deploy file may say about the ``mocker`` engine (``services.X.args``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dynamo_sdk.kv import OnboardingRule
from dynamo_sdk.plugins.config import PluginConfig

from .tier_config import SimTierConfig, TierSpeed


class MockerConfig(PluginConfig):
    """Defaults are those of NVIDIA Dynamo's mocker where it has the same setting.

    What is None is read from the model's ``config.json``; a folder without one counts as a model of 32,000
    tokens, as long a context as the blocks hold, and 128 KiB of KV per token (eight billion parameters).
    """

    timing: str = Field(
        default="dynamo_sdk.engines.mocker.timing:PolynomialTiming",
        description="how long a step takes: import string of a TimingModel",
    )
    timing_args: dict[str, str | int | float | bool] = Field(
        default={}, description="keyword arguments of the timing model"
    )
    speedup_ratio: float = Field(
        default=1.0, gt=0, description="steps and transfers take this many times less time"
    )
    startup_time_s: float = Field(default=0.0, ge=0)

    num_blocks: int = Field(default=16384, ge=1, description="KV blocks of one data-parallel rank")
    block_size: int = Field(default=64, ge=1, description="tokens per KV block")
    max_num_seqs: int = Field(default=256, ge=1, description="sequences in one step")
    max_num_batched_tokens: int = Field(default=8192, ge=1, description="tokens in one step")
    max_num_waiting: int = Field(
        default=4096, ge=1, description="requests of one rank beyond this are refused as overload"
    )
    enable_prefix_caching: bool = True
    enable_growth_reserve: bool = Field(
        default=False,
        description="admit nobody unless each running request could still get its next block; the torch "
        "engine does, NVIDIA Dynamo's mocker does not",
    )
    dp_size: int = Field(default=1, ge=1, description="data-parallel ranks, each with blocks of its own")

    kv_transfer_gb_per_s: float = Field(
        default=64.0, gt=0, description="from a prefill to a decode worker; 1 GB is a thousand million bytes"
    )
    kv_transfer_timing: Literal["full_prompt", "destination_missing"] = Field(
        default="full_prompt", description="which tokens a transfer takes time for"
    )
    kv_bytes_per_token: int | None = Field(default=None, ge=0)

    tiers: tuple[SimTierConfig, ...] = Field(
        default=(), description="what is kept beyond the device, fastest first; none = the graph's kv.tiers"
    )
    tier_speeds: dict[str, TierSpeed] = Field(
        default={},
        description="of tiers, by name or kind, where they are not those that the kind usually has",
    )
    kv_onboarding: OnboardingRule = Field(
        default="measured",
        description="load from tiers what was measured to cost less than computing, or whatever is there",
    )

    context_length: int | None = Field(default=None, ge=2)
    vocab_size: int | None = Field(default=None, ge=1)
    output_ids: tuple[int, int] | None = Field(
        default=None,
        description="output tokens are from the first id up to, not including, the second; None = the middle "
        "half of the vocabulary, where tokenizers keep whole words",
    )
    eos_after_tokens: int | None = Field(
        default=None, ge=1, description="end outputs with the model's end token here; None = never say it"
    )

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence computes a token per step"
            )
        if self.output_ids is not None and not 0 <= self.output_ids[0] < self.output_ids[1]:
            raise ValueError(f"output_ids must be two rising numbers from 0 on, not {self.output_ids}")
        return self
