"""``kv``: where the request costs least, in expected seconds, of itself and of others."""

from __future__ import annotations

from typing import Any

from .config import KvConfig
from .importing import imported
from .kv_cost import KvCost
from .pickers import SoftmaxPicker, pick_among_frontends
from .staged import StagedRouter
from .stages import Picker


class KvRouter(StagedRouter):
    """``KvCost``, then whatever scorers the configuration adds; the lowest, or by chance among those that are
    as good when other frontends choose at the same time."""

    def __init__(self, config: KvConfig | None = None) -> None:
        config = config or KvConfig()
        super().__init__(
            filters=[_stage(path) for path in config.filters],
            scorers=[KvCost(config), *(_stage(path) for path in config.scorers)],
            picker=_picker(config),
        )


def _picker(config: KvConfig) -> Picker:
    if config.picker is not None:
        picker: Picker = _stage(config.picker)
        return picker
    return SoftmaxPicker(config.temperature) if config.temperature else pick_among_frontends


def _stage(path: str) -> Any:
    """What an import string names; a class is called without arguments."""
    stage = imported(path)
    return stage() if isinstance(stage, type) else stage
