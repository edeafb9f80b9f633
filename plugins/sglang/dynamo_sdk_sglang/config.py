"""What a deploy file may say about the ``sglang`` engine, and how it becomes arguments of SGLang itself.

Nearly everything under ``services.X.args`` is SGLang's: it is passed on as it is written, and checked
against the installed version when the worker starts. What we set ourselves is dropped where that version
does not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from dynamo_sdk.engines.foreign_arguments import ForeignArguments, accepted, require_known
from dynamo_sdk.types import LoraSpec

PRIORITIES = ("fcfs", "lof")
"""Those of SGLang's schedule policies that know priorities."""


class SglangConfig(ForeignArguments):
    """Our own arguments; all others are fields of SGLang's ``ServerArgs``."""

    owned = {
        "model_path": "it is the model of the deploy file",
        "kv_events_config": "the worker reads the events and serves them to routers",
        "disaggregation_mode": "it is the role of the service",
        "disaggregation_bootstrap_port": "the worker finds a free one and announces it",
        "host": "set handover_host",
        "incremental_streaming_output": "the worker counts on it",
    }

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


def server_arguments(
    server_args: Callable[..., object], written: Mapping[str, object], ours: Mapping[str, object]
) -> dict[str, Any]:
    """Keyword arguments for ``server_args``, SGLang's ``ServerArgs``. What is ``written`` outranks ``ours``.

    Raises ``ConfigError`` for what the installed version does not know.
    """
    require_known(server_args, written, engine="SGLang")
    return {**accepted(server_args, ours), **written}
