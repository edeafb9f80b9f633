"""From what a deploy file says to cores that are ready to run, for an engine or a simulation."""

from __future__ import annotations

from dynamo_sdk.errors import ConfigError, EngineStartError, PluginError
from dynamo_sdk.plugins.importing import import_object
from dynamo_sdk.scheduling import SchedulerConfig

from .config import MockerConfig
from .core import MockerCore
from .model import MockedModel, read_model
from .tier_config import tier_models
from .timing import TimingModel
from .tokens import TokenSource
from .transfers import TransferCost

_BYTES_PER_GB = 1e9


def build_cores(
    model_path: str,
    config: MockerConfig,
    *,
    tokens: TokenSource | None = None,
    events_have_tokens: bool = True,
) -> tuple[MockerCore, ...]:
    """One core per data-parallel rank, for an engine or a simulation. ``tokens``: None = those of the config.

    Raises ``EngineStartError``.
    """
    model = read_model(model_path, config)
    timing = _timing(config)
    try:
        tokens = tokens or _tokens(model, config)
        scheduling = SchedulerConfig(
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            context_length=model.context_length or config.num_blocks * config.block_size,
            eos_token_ids=frozenset(model.eos_token_ids),
            enable_prefix_caching=config.enable_prefix_caching,
            enable_growth_reserve=config.enable_growth_reserve,
            events_have_tokens=events_have_tokens,
        )
        tiers = tier_models(
            config.tiers,
            config.tier_speeds,
            num_device_blocks=config.num_blocks,
            block_bytes=config.block_size * model.kv_bytes_per_token,
            dp_size=config.dp_size,
            speedup_ratio=config.speedup_ratio,
        )
    except (ValueError, ConfigError) as error:
        raise EngineStartError(f"the mocker engine cannot run like this: {error}") from error
    transfer_cost = TransferCost(
        bytes_per_token=model.kv_bytes_per_token,
        bytes_per_s=config.kv_transfer_gb_per_s * _BYTES_PER_GB,
        is_cached_free=config.kv_transfer_timing == "destination_missing",
    )
    return tuple(
        MockerCore(
            scheduling,
            tokens,
            timing,
            transfer_cost,
            tiers=tiers,
            onboarding=config.kv_onboarding,
            speedup_ratio=config.speedup_ratio,
            dp_rank=dp_rank,
        )
        for dp_rank in range(config.dp_size)
    )


def _tokens(model: MockedModel, config: MockerConfig) -> TokenSource:
    quarter = model.vocab_size // 4
    first_id, end_id = config.output_ids or (quarter, max(model.vocab_size - quarter, quarter + 1))
    return TokenSource(
        first_id,
        min(end_id, model.vocab_size),
        eos_token_ids=model.eos_token_ids,
        eos_after_tokens=config.eos_after_tokens,
    )


def _timing(config: MockerConfig) -> TimingModel:
    try:
        factory = import_object(config.timing, what="the mocker's timing model")
        timing = factory(**config.timing_args) if callable(factory) else None
    except PluginError as error:
        raise EngineStartError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise EngineStartError(f"timing model {config.timing}: {error}") from error
    if not isinstance(timing, TimingModel):
        raise EngineStartError(f"timing model {config.timing} does not make a TimingModel")
    return timing
