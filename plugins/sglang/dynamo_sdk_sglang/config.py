"""What a deploy file may say about the ``sglang`` engine, and how it becomes arguments of SGLang itself.

Nearly everything under ``services.X.args`` is SGLang's: it is passed on as it is written, and checked
against the installed version when the worker starts. What we set ourselves is dropped where that version
does not know it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.types import LoraSpec

OWNED = {
    "model_path": "it is the model of the deploy file",
    "kv_events_config": "the worker reads the events and serves them to routers",
    "disaggregation_mode": "it is the role of the service",
    "disaggregation_bootstrap_port": "the worker finds a free one and announces it",
    "host": "set handover_host",
    "incremental_streaming_output": "the worker counts on it",
}
"""Arguments of SGLang that are not the user's to set, and why."""

PRIORITIES = ("fcfs", "lof")
"""Those of SGLang's schedule policies that know priorities."""


class SglangConfig(BaseModel):
    """Our own arguments; all others are fields of SGLang's ``ServerArgs``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the process that runs SGLang"
    )
    handover_host: str = Field(
        default="127.0.0.1", description="where the other leg's worker reaches this one's"
    )
    handover_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="how long a leg of a hand-over may take to its first token, queueing included",
    )

    @model_validator(mode="before")
    @classmethod
    def _leaves_ours_alone(cls, values: object) -> object:
        if isinstance(values, dict):
            for name, why in OWNED.items():
                if name in values:
                    raise ValueError(f"{name} cannot be set here: {why}")
        return values

    @property
    def written(self) -> dict[str, Any]:
        """What is SGLang's."""
        return dict(self.model_extra or {})


def defaults(config: SglangConfig, loras: Sequence[LoraSpec] = ()) -> dict[str, Any]:
    """What we want of SGLang unless the deploy file says otherwise."""
    wanted: dict[str, Any] = {
        "log_level": "warning",
        "enable_metrics": True,  # without, outputs do not say where the time went
        "enable_forward_pass_metrics": True,
    }
    if config.written.get("schedule_policy", PRIORITIES[0]) in PRIORITIES:
        wanted |= {  # as a request's priority means it: smaller runs first
            "enable_priority_scheduling": True,
            "schedule_low_priority_values_first": True,
            "default_priority_value": 0,
        }
    if loras:  # by these it knows how much room adapters need
        wanted |= {"enable_lora": True, "lora_paths": [f"{lora.name}={lora.path}" for lora in loras]}
    return wanted


def accepted(target: Callable[..., object], wanted: Mapping[str, object]) -> dict[str, Any]:
    """Those of ``wanted`` that ``target`` takes: versions of SGLang differ in what they know."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(wanted)
    return {name: value for name, value in wanted.items() if name in parameters}


def server_arguments(
    server_args: Callable[..., object], written: Mapping[str, object], ours: Mapping[str, object]
) -> dict[str, Any]:
    """Keyword arguments for ``server_args``, SGLang's ``ServerArgs``. What is ``written`` outranks ``ours``.

    Raises ``ConfigError`` for what the installed version does not know.
    """
    known = list(inspect.signature(server_args).parameters)
    for name in written:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"args.{name}: SGLang has no such argument{hint}", param=f"args.{name}")
    return {**accepted(server_args, ours), **written}
