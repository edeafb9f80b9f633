"""From the name of an installed plugin to the kit that checks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import Engine, EngineSetup, KVStore, ReadsPeers
from dynamo_sdk.plugins import Kind, Registry
from dynamo_sdk.runtime.model_path import resolve_lora_path, resolve_model_path
from dynamo_sdk.types import LoraSpec, ModelSpec, Role
from dynamo_sdk.types.plan import Json

from .engine import engine_kit
from .kit import Kit
from .kv_connector import kv_connector_kit
from .kv_store import kv_store_kit
from .planner import planner_kit
from .router import router_kit

CHECKED_KINDS = (Kind.ENGINE, Kind.ROUTER, Kind.PLANNER, Kind.KV_CONNECTOR, Kind.KV_STORE)
_FOLDER_ARGS = ("path", "folder")
_STORE_SIZES = {"block_bytes": 4096, "capacity_bytes": 1 << 20}
_DEFAULT_VOCAB_SIZE = 1000
_NO_MODEL = Path("/nonexistent/model")
_MOVED_BY_THE_WORKER = ("direct",)
"""Connectors whose tickets the worker makes; the kit copies the blocks itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """``args`` of the plugin, as in a deploy file. The rest is for engines: ``model`` as in a deploy file,
    ``loras`` and ``is_exact`` as in ``engine_kit``."""

    args: dict[str, Json] = field(default_factory=dict)
    model: str = "demo"
    loras: Sequence[str] = ()
    is_exact: bool = True
    timeout_s: float = 60.0


def installed_kit(registry: Registry, kind: Kind, name: str, options: CheckOptions) -> Kit[Any]:
    """The checks of ``kind`` on the plugin ``name``, ready to run.

    Raises ``ConfigError`` for a kind without checks, an unknown name and wrong arguments, ``PluginError`` for
    a plugin that cannot be loaded.
    """
    if kind not in CHECKED_KINDS:
        raise ConfigError(f"there are no checks of a {kind} (there are: {', '.join(CHECKED_KINDS)})")
    kit = _KITS[kind](registry, name, options)
    kit.timeout_s = options.timeout_s
    return kit


def _engine_kit(registry: Registry, name: str, options: CheckOptions) -> Kit[Any]:
    descriptor = registry.engines.require(name)
    registry.validate(descriptor, options.args, where="--set")
    path = resolve_model_path(options.model)
    loras = tuple(
        LoraSpec(name=f"adapter-{number}", path=str(resolve_lora_path(lora)))
        for number, lora in enumerate(options.loras)
    )
    connector_name = descriptor.connectors[0] if descriptor.connectors else None
    connector = None if connector_name is None else registry.build_kv_connector(connector_name)

    def new_engine(role: Role, folder: Path = path) -> Engine:
        setup = EngineSetup(
            model=ModelSpec(name="model", path=str(folder)),
            role=role,
            connector=connector_name,
            connector_args={} if connector is None else connector.engine_args(role),
            loras=loras,
        )
        return registry.build_engine(name, setup, options.args)

    return engine_kit(
        new_engine,
        roles=descriptor.roles,
        vocab_size=_vocab_size(path),
        is_exact=options.is_exact,
        connector=None if connector_name in _MOVED_BY_THE_WORKER else connector,
        unstartable=lambda role: new_engine(role, _NO_MODEL),
        loras=[lora.path for lora in loras],
    )


def _router_kit(registry: Registry, name: str, options: CheckOptions) -> Kit[Any]:
    registry.validate(registry.routers.require(name), options.args, where="--set")
    return router_kit(lambda: registry.build_router(name, options.args))


def _planner_kit(registry: Registry, name: str, options: CheckOptions) -> Kit[Any]:
    registry.validate(registry.planners.require(name), options.args, where="--set")
    return planner_kit(lambda: registry.build_planner(name, options.args))


def _kv_connector_kit(registry: Registry, name: str, options: CheckOptions) -> Kit[Any]:
    registry.validate(registry.kv_connectors.require(name), options.args, where="--set")
    return kv_connector_kit(lambda: registry.build_kv_connector(name, options.args), name=name)


def _kv_store_kit(registry: Registry, name: str, options: CheckOptions) -> Kit[Any]:
    """A store whose arguments have a folder gets a new one each time, so that it begins empty. One that must
    be told the size of blocks, or its own, is told the kit's unless ``options`` say another."""
    descriptor = registry.kv_stores.require(name)
    config = registry.load_config(descriptor)
    fields = config.model_fields if config is not None else {}
    args = dict(options.args)
    for arg, value in _STORE_SIZES.items():
        if arg in fields and fields[arg].is_required():
            args.setdefault(arg, value)
    given = args.get("block_bytes")
    block_bytes = given if isinstance(given, int) else _STORE_SIZES["block_bytes"]
    folder_arg = next((arg for arg in _FOLDER_ARGS if arg in fields), None)
    if folder_arg is None:
        registry.validate(descriptor, args, where="--set")
        if isinstance(registry.build_kv_store(name, args), ReadsPeers):
            raise ConfigError(f"kv-store {name!r} keeps nothing itself; check the stores that it reads")
        return kv_store_kit(lambda: registry.build_kv_store(name, args), block_bytes=block_bytes)
    if folder_arg in args:
        raise ConfigError(f"--set: leave {folder_arg} out; the store is checked in empty folders of its own")
    registry.validate(descriptor, {**args, folder_arg: "."}, where="--set")

    def over(folder: Path) -> KVStore:
        return registry.build_kv_store(name, {**args, folder_arg: str(folder)})

    return kv_store_kit(on_disk=over, block_bytes=block_bytes)


def _vocab_size(model: Path) -> int:
    """What the model's ``config.json`` says; a thousand where it says nothing."""
    try:
        config = msgspec.json.decode((model / "config.json").read_bytes(), type=_ModelConfig)
    except (OSError, msgspec.MsgspecError):
        return _DEFAULT_VOCAB_SIZE
    return config.vocab_size


class _ModelConfig(msgspec.Struct):
    vocab_size: int = _DEFAULT_VOCAB_SIZE


_KITS: dict[Kind, Callable[[Registry, str, CheckOptions], Kit[Any]]] = {
    Kind.ENGINE: _engine_kit,
    Kind.ROUTER: _router_kit,
    Kind.PLANNER: _planner_kit,
    Kind.KV_CONNECTOR: _kv_connector_kit,
    Kind.KV_STORE: _kv_store_kit,
}
