"""``check_engine``: does anybody's engine keep the promises of ``Engine``?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dynamo_sdk.interfaces import KVConnector
from dynamo_sdk.types import Role

from .engine_bench import EngineBench, EngineFactory
from .engine_cache import CACHE_CHECKS
from .engine_cancel import CANCEL_CHECKS
from .engine_feeds import FEED_CHECKS
from .engine_handover import HANDOVER_CHECKS
from .engine_input import INPUT_CHECKS
from .engine_kv_events import KV_EVENT_CHECKS
from .engine_lifecycle import LIFECYCLE_CHECKS
from .engine_loras import LORA_CHECKS
from .engine_output import OUTPUT_CHECKS
from .engine_sampling import SAMPLING_CHECKS
from .engine_sources import SOURCE_CHECKS
from .engine_transfer import TRANSFER_CHECKS
from .kit import Kit
from .places import Subject
from .report import Report

ENGINE_CHECKS = (
    *LIFECYCLE_CHECKS,
    *OUTPUT_CHECKS,
    *SAMPLING_CHECKS,
    *INPUT_CHECKS,
    *CANCEL_CHECKS,
    *SOURCE_CHECKS,
    *CACHE_CHECKS,
    *KV_EVENT_CHECKS,
    *FEED_CHECKS,
    *HANDOVER_CHECKS,
    *TRANSFER_CHECKS,
    *LORA_CHECKS,
)


def engine_kit(
    factory: EngineFactory,
    *,
    roles: Collection[Role] = tuple(Role),
    vocab_size: int = 64,
    is_exact: bool = True,
    connector: KVConnector | None = None,
    unstartable: EngineFactory | None = None,
    loras: Sequence[str] = (),
    probe_timeout_s: float = 30.0,
    timeout_s: float = 60.0,
) -> Kit[EngineBench]:
    """The engine checks, ready to run.

    ``factory(role)`` makes a new engine, not yet started; ``roles`` are those it can run. Prompts use
    token ids below ``vocab_size``. ``is_exact=False`` skips the checks that compare tokens between runs
    whose batches differ. ``connector`` makes the tickets of hand-overs; None = the prefill leg's ticket is
    passed on as it is. ``unstartable(role)`` makes an engine whose start must fail. ``loras`` are folders
    of adapters that it can load, better two than one. ``probe_timeout_s`` is for the first token,
    ``timeout_s`` for one check, the start of an engine included.
    """
    bench = EngineBench(
        factory=factory,
        roles=roles,
        vocab_size=vocab_size,
        is_exact=is_exact,
        connector=connector,
        unstartable=unstartable,
        loras=loras,
        probe_timeout_s=probe_timeout_s,
    )
    return Kit(
        subject=Subject.of(bench.new_engine()),
        checks=ENGINE_CHECKS,
        bench=bench,
        timeout_s=timeout_s,
        discard=bench.discard,
    )


async def check_engine(
    factory: EngineFactory,
    *,
    roles: Collection[Role] = tuple(Role),
    vocab_size: int = 64,
    is_exact: bool = True,
    connector: KVConnector | None = None,
    unstartable: EngineFactory | None = None,
    loras: Sequence[str] = (),
    probe_timeout_s: float = 30.0,
    timeout_s: float = 60.0,
) -> Report:
    """Run every engine check; the arguments are those of ``engine_kit``."""
    kit = engine_kit(
        factory,
        roles=roles,
        vocab_size=vocab_size,
        is_exact=is_exact,
        connector=connector,
        unstartable=unstartable,
        loras=loras,
        probe_timeout_s=probe_timeout_s,
        timeout_s=timeout_s,
    )
    return await kit.run()
