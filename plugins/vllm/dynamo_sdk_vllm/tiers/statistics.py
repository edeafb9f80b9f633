"""What workers and scheduler say of the tiers, put together: plain data on its way through vLLM's statistics.

``workers``: of each process, by name, its own ``KVTiersStatistics``; ``scheduler``: what only it knows;
``sharing``: of each process that others read, by name, its ``KVSharingStatistics``. All are totals, so a
later one takes the place of an earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dynamo_sdk.interfaces import (
    KVSharingStatistics,
    KVStoreStatistics,
    KVTierCounts,
    KVTiersStatistics,
    KVTierStatistics,
)

from .held import Lookups

S = TypeVar("S", KVSharingStatistics, KVStoreStatistics, KVTierCounts, KVTierStatistics)
Said = dict[str, Any]


class SchedulerTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler alone matches requests with the tiers. By tier, and as in ``KVTiersStatistics``."""

    num_lookup_blocks: dict[str, int]
    num_hit_blocks: dict[str, int]
    num_matched_tokens: int
    num_decisions: dict[str, int]


def of_worker(
    name: str, statistics: KVTiersStatistics | None, sharing: KVSharingStatistics | None = None
) -> Said:
    """None: as before."""
    said: Said = {}
    if statistics is not None:
        said["workers"] = {name: msgspec.to_builtins(statistics)}
    if sharing is not None:
        said["sharing"] = {name: msgspec.to_builtins(sharing)}
    return said


def of_scheduler(lookups: Lookups, num_matched_tokens: int, num_decisions: Mapping[str, int]) -> Said:
    totals = SchedulerTotals(
        num_lookup_blocks=dict(lookups.num_asked),
        num_hit_blocks=dict(lookups.num_hits),
        num_matched_tokens=num_matched_tokens,
        num_decisions={name: count for name, count in num_decisions.items() if name != "nothing"},
    )
    return {"scheduler": msgspec.to_builtins(totals)}


def merged(earlier: Said, later: Said) -> Said:
    """Both, the later one first."""
    by_process: Said = {
        part: {**earlier.get(part, {}), **later.get(part, {})}
        for part in ("workers", "sharing")
        if part in earlier or part in later
    }
    return {**earlier, **later, **by_process}


def total(said: Iterable[Said]) -> KVTiersStatistics:
    """Of all schedulers (one per data-parallel rank) and their workers."""
    said = list(said)
    workers = [
        msgspec.convert(worker, KVTiersStatistics)
        for each in said
        for worker in each.get("workers", {}).values()
    ]
    schedulers = [msgspec.convert(each["scheduler"], SchedulerTotals) for each in said if "scheduler" in each]
    asked, hits, decisions = Counter[str](), Counter[str](), Counter[str]()
    for scheduler in schedulers:
        asked.update(scheduler.num_lookup_blocks)
        hits.update(scheduler.num_hit_blocks)
        decisions.update(scheduler.num_decisions)
    tiers = [_sum(same) for same in zip(*(worker.tiers for worker in workers), strict=True)]
    return KVTiersStatistics(
        tiers=tuple(
            msgspec.structs.replace(tier, counts=_asked(tier.counts, asked[tier.name], hits[tier.name]))
            for tier in tiers
        ),
        num_matched_tokens=sum(scheduler.num_matched_tokens for scheduler in schedulers),
        num_decisions=dict(decisions),
    )


def _asked(counts: KVTierCounts, num_blocks: int, num_hits: int) -> KVTierCounts:
    return msgspec.structs.replace(counts, num_lookup_blocks=num_blocks, num_hit_blocks=num_hits)


def sharing_of(said: Iterable[Said]) -> KVSharingStatistics:
    """Of all processes; nothing, where nobody has said anything."""
    found = [
        msgspec.convert(process, KVSharingStatistics)
        for each in said
        for process in each.get("sharing", {}).values()
    ]
    return _sum(found) if found else KVSharingStatistics()


def _sum(parts: Sequence[S]) -> S:
    """Field by field; names are those of the first."""
    return msgspec.structs.replace(
        parts[0],
        **{
            field: _added([getattr(part, field) for part in parts])
            for field in parts[0].__struct_fields__
            if not isinstance(getattr(parts[0], field), str)
        },
    )


def _added(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return dict(sum((Counter(value) for value in values), Counter[str]()))
    if isinstance(values[0], KVStoreStatistics | KVTierCounts):
        return _sum(values)
    return None if None in values else sum(values)
