"""``kv``: where the request costs least, in expected seconds, of itself and of others."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from dynamo_sdk.errors import ConfigError

from .config import KvConfig
from .kv_cost import KvCost
from .pickers import SoftmaxPicker, pick_among_frontends
from .staged import StagedRouter
from .stages import Picker


class KvRouter(StagedRouter):
    """``KvCost``, then whatever scorers the configuration adds; the lowest, or by chance among those that are
    as good when other frontends choose at the same time.

    Raises ``ConfigError`` for a stage that cannot be imported.
    """

    def __init__(self, config: KvConfig | None = None) -> None:
        config = config or KvConfig()
        super().__init__(
            filters=[_stage("filters", path) for path in config.filters],
            scorers=[KvCost(config), *(_stage("scorers", path) for path in config.scorers)],
            picker=_picker(config),
        )


def _picker(config: KvConfig) -> Picker:
    if config.picker is not None:
        picker: Picker = _stage("picker", config.picker)
        return picker
    return SoftmaxPicker(config.temperature) if config.temperature else pick_among_frontends


def _stage(field: str, path: str) -> Any:
    """What an import string names; a class is called without arguments."""
    try:
        stage = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"router.args.{field}: cannot import {path!r}: {error}") from error
    return stage() if isinstance(stage, type) else stage
