"""The tiers of a deploy file, checked against the stores that are installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from pydantic import BaseModel, JsonValue, SecretStr

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import TierSize, check_tier_sizes
from dynamo_sdk.plugins import KVStoreDescriptor, Registry
from dynamo_sdk.types.plan import Json, KVTierPlan

from .deploy import KVSection, Problems, TierSection, check_tier
from .pairing import Leg
from .paths import Path
from .plugin_args import argument_names, check_plugin_args
from .settings import SettingsLog

BLOCK_BYTES_ARG, CAPACITY_ARG = "block_bytes", "capacity_bytes"
ANY_BYTES = 1 << 40
"""Stands for a capacity that is missing or wrong, so that the rest of the tier can be checked."""


def choose_tiers(
    section: KVSection, above: Path, registry: Registry, log: SettingsLog, problems: Problems
) -> tuple[KVTierPlan, ...]:
    """``above``: the path of what ``kv`` belongs to. What is wrong goes to ``problems``; such tiers are left
    out."""
    path: Path = (*above, "kv", "tiers")
    chosen: list[KVTierPlan] = []
    for number, written in enumerate(section.tiers or ()):
        taken = [other.name for other in chosen]
        plan = _choose_tier(written, number, path, taken, registry, log, problems)
        if plan is not None:
            chosen.append(plan)
    sizes = [TierSize(tier.name, tier.capacity_bytes) for tier in chosen if tier.capacity_bytes is not None]
    try:
        check_tier_sizes(0, sizes, 1)
    except ConfigError as error:
        problems.add(path, error.message)
    return tuple(chosen)


def _choose_tier(
    written: Mapping[str, JsonValue],
    number: int,
    path: Path,
    taken: Sequence[str],
    registry: Registry,
    log: SettingsLog,
    problems: Problems,
) -> KVTierPlan | None:
    """None where one of the keys that are not the store's is wrong."""
    place: tuple[str | int, ...] = (*path, number)
    tier = check_tier(written, place, problems)
    descriptor = _store_of(written, place, registry, problems)
    if descriptor is None:
        return None
    model = registry.load_config(descriptor)
    capacity_bytes = ANY_BYTES if tier is None or tier.capacity is None else tier.capacity
    defaults = _check_store_args(written, capacity_bytes, place, descriptor, model, registry, problems)
    if tier is None:
        return None
    args = dict(tier.model_extra or {})
    if tier.capacity is not None:
        args[CAPACITY_ARG] = tier.capacity
    fields = {} if model is None else model.model_fields
    shown: dict[str, Json] = cast(dict[str, Json], tier.model_dump(mode="json", exclude_none=True))
    shown |= {name: "********" for name in shown if name in fields and _is_secret(fields[name].annotation)}
    log.record_item(path, number, shown, {"min_uses": descriptor.default_min_uses, **defaults})
    return KVTierPlan(
        name=next(
            name for name in (tier.kind, *(f"{tier.kind}-{n}" for n in range(2, 100))) if name not in taken
        ),
        kind=tier.kind,
        capacity_bytes=tier.capacity,
        args=cast(dict[str, Json], args),
        min_uses=descriptor.default_min_uses if tier.min_uses is None else tier.min_uses,
        min_priority=tier.min_priority,
    )


def _store_of(
    written: Mapping[str, JsonValue], place: Sequence[str | int], registry: Registry, problems: Problems
) -> KVStoreDescriptor | None:
    kind = written.get("kind")
    if not isinstance(kind, str) or not kind:
        return None  # ``check_tier`` says so
    try:
        return registry.kv_stores.require(kind)
    except ConfigError as error:
        problems.add((*place, "kind"), error.message)
        return None


def _check_store_args(
    written: Mapping[str, JsonValue],
    capacity_bytes: int,
    place: Sequence[str | int],
    descriptor: KVStoreDescriptor,
    model: type[BaseModel] | None,
    registry: Registry,
    problems: Problems,
) -> dict[str, Json]:
    """The store's defaults, by name. Each key is checked, however wrong the others are; ``capacity_bytes``:
    as written, where that can be said."""
    args = {name: value for name, value in written.items() if name not in TierSection.model_fields}
    for name, hint in ((BLOCK_BYTES_ARG, "the engine says it"), (CAPACITY_ARG, "write capacity")):
        if name in args:
            del args[name]
            problems.add((*place, name), f"cannot be given here; {hint}")
    fields = {} if model is None else model.model_fields
    has_capacity = CAPACITY_ARG in fields
    if written.get("capacity") is not None:
        if not has_capacity:
            problems.add((*place, "capacity"), f"kv-store {descriptor.name!r} has none; remove it")
    elif has_capacity and fields[CAPACITY_ARG].is_required() and CAPACITY_ARG not in written:
        problems.add((*place, "capacity"), f"is missing; {descriptor.name} needs one, such as 2GiB")
    ours: dict[str, JsonValue] = {BLOCK_BYTES_ARG: 1, CAPACITY_ARG: capacity_bytes}
    args |= {name: value for name, value in ours.items() if name in fields}
    known = {*TierSection.model_fields, *(() if model is None else argument_names(model))}
    known -= {BLOCK_BYTES_ARG, CAPACITY_ARG, *(() if has_capacity else ("capacity",))}
    return check_plugin_args(registry, descriptor, args, place, problems, known=known)


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or SecretStr in get_args(annotation)


def check_engines(
    tiers: Sequence[KVTierPlan], legs: Sequence[Leg], path: Sequence[str], problems: Problems
) -> None:
    """Every engine of a model with tiers must be one that keeps blocks there."""
    for leg in legs if tiers else ():
        if not leg.engine.takes_kv_tiers:
            problems.add(
                path,
                f"engine {leg.engine.name!r} of service {leg.service} keeps no blocks in tiers; remove them",
            )
