"""The tiers of a deploy file, checked against the stores that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from pydantic import JsonValue, SecretStr

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import TierSize, check_tier_sizes
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types.plan import Json, KVTierPlan

from .deploy import KVSection, Problems, TierSection
from .pairing import Leg
from .paths import Path
from .plugin_args import check_plugin_args
from .settings import SettingsLog

BLOCK_BYTES_ARG, CAPACITY_ARG = "block_bytes", "capacity_bytes"


def choose_tiers(
    section: KVSection, above: Path, registry: Registry, log: SettingsLog, problems: Problems
) -> tuple[KVTierPlan, ...]:
    """``above``: the path of what ``kv`` belongs to. What is wrong goes to ``problems``; such tiers are left
    out."""
    path: Path = (*above, "kv", "tiers")
    chosen: list[KVTierPlan] = []
    for number, tier in enumerate(section.tiers or ()):
        plan = _choose_tier(tier, number, path, [other.name for other in chosen], registry, log, problems)
        if plan is not None:
            chosen.append(plan)
    sizes = [TierSize(tier.name, tier.capacity_bytes) for tier in chosen if tier.capacity_bytes is not None]
    try:
        check_tier_sizes(0, sizes, 1)
    except ConfigError as error:
        problems.add(path, error.message)
    return tuple(chosen)


def _choose_tier(
    tier: TierSection,
    number: int,
    path: Path,
    taken: Sequence[str],
    registry: Registry,
    log: SettingsLog,
    problems: Problems,
) -> KVTierPlan | None:
    place: tuple[str | int, ...] = (*path, number)
    try:
        descriptor = registry.kv_stores.require(tier.kind)
    except ConfigError as error:
        problems.add((*place, "kind"), error.message)
        return None
    args = dict(tier.model_extra or {})
    for name in (BLOCK_BYTES_ARG, CAPACITY_ARG):
        if name in args:
            hint = "write capacity" if name == CAPACITY_ARG else "the engine says it"
            problems.add((*place, name), f"cannot be given here; {hint}")
            return None
    model = registry.load_config(descriptor)
    fields = {} if model is None else model.model_fields
    if tier.capacity is not None:
        args[CAPACITY_ARG] = tier.capacity
    elif CAPACITY_ARG in fields and fields[CAPACITY_ARG].is_required():
        problems.add((*place, "capacity"), f"is missing; {tier.kind} needs one, such as 2GiB")
        return None
    if CAPACITY_ARG in args and CAPACITY_ARG not in fields:
        problems.add((*place, "capacity"), f"kv-store {tier.kind!r} has none; remove it")
        return None
    checked: dict[str, JsonValue] = {**args, BLOCK_BYTES_ARG: 1} if BLOCK_BYTES_ARG in fields else args
    defaults = check_plugin_args(registry, descriptor, checked, place, problems)
    written: dict[str, Json] = cast(dict[str, Json], tier.model_dump(mode="json", exclude_none=True))
    written |= {
        name: "********" for name in written if name in fields and _is_secret(fields[name].annotation)
    }
    log.record_item(path, number, written, {"min_uses": descriptor.default_min_uses, **defaults})
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
