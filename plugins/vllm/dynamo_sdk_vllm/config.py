"""What a deploy file may say about the ``vllm`` engine, and how it becomes arguments of vLLM itself.

Nearly everything under ``services.X.args`` is vLLM's: it is passed on as it is written, and checked
against the installed version when the worker starts. What we set ourselves is dropped where that version
does not know it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from dynamo_sdk.engines.foreign_arguments import ForeignArguments, accepted, require_known
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.kv import OnboardingRule


class VllmConfig(ForeignArguments):
    """Our own arguments; all others are fields of vLLM's ``AsyncEngineArgs``."""

    owned = {
        "model": "it is the model of the deploy file",
        "kv_events_config": "the worker reads the events and serves them to routers",
        "disable_log_stats": "the worker reads the statistics",
    }

    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the worker's process, set before vLLM is imported"
    )
    lease_s: float = Field(
        default=30.0, ge=6, description="how long prefill keeps blocks that nobody has fetched yet"
    )
    kv_onboarding: OnboardingRule = Field(
        default="measured",
        description="load from KV tiers what was measured to cost less than computing, or whatever is there",
    )
    side_channel_host: str = Field(
        default="127.0.0.1", description="where decode workers reach this prefill worker's NIXL handshake"
    )


def num_ranks(config: VllmConfig) -> int:
    """Of data parallelism."""
    return int(config.written.get("data_parallel_size", 1))


def engine_arguments(
    engine_args: Callable[..., object], setup: EngineSetup, config: VllmConfig, **ours: object
) -> dict[str, Any]:
    """Keyword arguments for ``engine_args``, vLLM's ``AsyncEngineArgs``.

    What the deploy file says goes before ``ours`` and before our defaults. Raises ``ConfigError`` for what
    the installed version does not know.
    """
    require_known(engine_args, config.written, engine="vLLM")
    defaults: dict[str, object] = {
        "enable_prefix_caching": True,
        "disable_log_stats": True,  # our own reader of the statistics is enough
        "served_model_name": setup.model.name,
        "scheduling_policy": "priority",  # as a request's priority means it: smaller runs first
        **ours,
    }
    return {"model": setup.model.path, **accepted(engine_args, defaults), **config.written}
