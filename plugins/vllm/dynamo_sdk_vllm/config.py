"""What a deploy file may say about the ``vllm`` engine, and how it becomes arguments of vLLM itself.

Nearly everything under ``services.X.args`` is vLLM's: it is passed on as it is written, and checked
against the installed version when the worker starts. What we set ourselves is dropped where that version
does not know it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.kv import OnboardingRule

OWNED = {
    "model": "it is the model of the deploy file",
    "kv_events_config": "the worker reads the events and serves them to routers",
    "disable_log_stats": "the worker reads the statistics",
}
"""Arguments of vLLM that are not the user's to set, and why."""


class VllmConfig(BaseModel):
    """Our own arguments; all others are fields of vLLM's ``AsyncEngineArgs``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the worker's process, set before vLLM is imported"
    )
    lease_s: float = Field(
        default=30.0, ge=6, description="how long prefill keeps blocks that nobody has fetched yet"
    )
    kv_onboarding: OnboardingRule = Field(
        default="measured",
        description="load from KV tiers what was measured to be faster than computing, or whatever is there",
    )
    side_channel_host: str = Field(
        default="127.0.0.1", description="where decode workers reach this prefill worker's NIXL handshake"
    )

    @model_validator(mode="before")
    @classmethod
    def _leaves_ours_alone(cls, values: object) -> object:
        if isinstance(values, dict):
            for name, why in OWNED.items():
                if name in values:
                    raise ValueError(f"{name} cannot be set here: {why}")
        return values


def accepted(target: Callable[..., object], wanted: Mapping[str, object]) -> dict[str, Any]:
    """Those of ``wanted`` that ``target`` takes: versions of vLLM differ in what they know."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(wanted)
    return {name: value for name, value in wanted.items() if name in parameters}


def engine_arguments(
    engine_args: Callable[..., object], setup: EngineSetup, config: VllmConfig, **ours: object
) -> dict[str, Any]:
    """Keyword arguments for ``engine_args``, vLLM's ``AsyncEngineArgs``.

    What the deploy file says goes before ``ours`` and before our defaults. Raises ``ConfigError`` for what
    the installed version does not know.
    """
    written = dict(config.model_extra or {})
    known = list(inspect.signature(engine_args).parameters)
    for name in written:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"args.{name}: vLLM has no such engine argument{hint}", param=f"args.{name}")
    defaults: dict[str, object] = {
        "enable_prefix_caching": True,
        "disable_log_stats": True,  # our own reader of the statistics is enough
        "served_model_name": setup.model.name,
        "scheduling_policy": "priority",  # as a request's priority means it: smaller runs first
        **ours,
    }
    return {"model": setup.model.path, **accepted(engine_args, defaults), **written}
