"""``check_engine``: does anybody's engine keep the promises of ``Engine``?"""

from __future__ import annotations

from collections.abc import Collection

from dynamo_sdk.types import Role

from .engine_bench import EngineBench, EngineFactory
from .engine_cancel import CANCEL_CHECKS
from .engine_feeds import FEED_CHECKS
from .engine_handover import HANDOVER_CHECKS
from .engine_lifecycle import LIFECYCLE_CHECKS
from .engine_output import OUTPUT_CHECKS
from .report import Report, run_checks, subject_of

ENGINE_CHECKS = (*LIFECYCLE_CHECKS, *OUTPUT_CHECKS, *CANCEL_CHECKS, *HANDOVER_CHECKS, *FEED_CHECKS)


async def check_engine(
    factory: EngineFactory,
    *,
    roles: Collection[Role] = tuple(Role),
    vocab_size: int = 64,
    is_exact: bool = True,
    timeout_s: float = 60.0,
) -> Report:
    """Run every engine check.

    ``factory(role)`` makes a new engine, not yet started; ``roles`` are those it can run. Prompts use
    token ids below ``vocab_size``. ``is_exact=False`` skips the checks that compare tokens between runs
    whose batches differ. ``timeout_s`` is for one check, the start of an engine included.
    """
    bench = EngineBench(factory=factory, roles=roles, vocab_size=vocab_size, is_exact=is_exact)
    subject = subject_of(bench.new_engine())
    try:
        return await run_checks(
            subject, ENGINE_CHECKS, bench, timeout_s=timeout_s, after_failure=bench.discard
        )
    finally:
        await bench.discard()
