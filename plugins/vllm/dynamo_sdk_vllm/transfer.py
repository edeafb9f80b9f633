"""vLLM's ``KVTransferConfig``: what moves its KV, to other workers and to the tiers below its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from dynamo_sdk.interfaces import EngineSetup

from .config import VllmConfig, num_ranks
from .tiers.config import CONNECTOR, MODULE, TiersConfig
from .tiers.sharing import ask

RECOMPUTE = {"kv_load_failure_policy": "recompute"}
"""A block that a tier does not give is computed. vLLM's own choice is to fail the request."""


def kv_transfer(setup: EngineSetup, config: VllmConfig, folder: str) -> dict[str, Any] | None:
    """Keyword arguments of ``KVTransferConfig``; None where KV stays on the device. ``folder``: a private
    one, where vLLM is told how others may read its tiers."""
    handover = None
    if setup.connector is not None:
        lease = {"kv_lease_duration": config.lease_s}
        handover = {**setup.connector_args, "kv_connector_extra_config": lease}
    if not setup.kv_tiers:
        return handover
    plans = tuple(tier.plan for tier in setup.kv_tiers)
    if setup.kv_sharing is not None:
        ask(Path(folder), setup.kv_sharing)
    written = TiersConfig(
        plans,
        config.kv_onboarding,
        has_statistics=True,
        sharing=None if setup.kv_sharing is None else folder,
        num_ranks=num_ranks(config),
        may_lack=any(tier.may_lack for tier in setup.kv_tiers),
    )
    tiers = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": msgspec.to_builtins(written),
    }
    if handover is None:
        return {**tiers, **RECOMPUTE}
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [handover, tiers]},  # the first that has something loads
        **RECOMPUTE,
    }
