"""Load a prefix from the tiers, or compute it again? Whatever was measured to cost less time.

A prompt's blocks beyond those on the device lie in *runs*: the next 40 in RAM, the next 200 on disk. Loading
ends at the end of one of them, or nothing is loaded; what is not loaded is computed. For every such end::

    cost(end) = loads of the runs before it, one after the other  +  w * computing from there to the end

The cheapest wins, among those whose loads cost clearly less than the computing that they save.

``w`` is 1 for a request that is alone: then this is its own time. A load goes on beside the steps, while
computing takes the device from everybody, so a second of it counts once more for each request that waits for
its first token, and a little for each that has it. So a busy device leaves work to a tier that is somewhat
slower than itself, and an idle one does not. Two things bound that. Whoever else may gain, no request is to
wait longer than ``MAX_WEIGHT`` times what computing its prompt takes. And a load counts with its wait for
others, so a tier gets no more work than it can do.

Nothing is loaded from a tier of which nothing is known, and nothing at all while nobody has measured
computing; both cure themselves. Computing is measured whenever it happens. A tier whose measurements are
missing or old is named in ``probe``: time the load of one of its blocks beside the request, which does not
wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from dynamo_sdk.types.kv_events import KVTier
from dynamo_sdk.types.loads import BlockLoadTimes

from .measured_time import HALF_LIFE_S, MeasuredTime, MeasuredTimeBySize

MARGIN = 0.9
"""Loading is worth it below this share of the time of the computing that it saves."""

MIN_FRESH_WEIGHT = 0.25
"""A tier is probed when what is known of it is worth less than one measurement of two half-lives ago."""

RUNNING_SHARE = 0.1
"""What delaying somebody's next token counts, next to a first token: it is one of many of an answer."""

MAX_WEIGHT = 4.0
"""What a second of computing counts at most, next to one of loading."""

MANY_BLOCKS = 32
"""What a load has before its bytes, such as a seek, is shared by so many where one's time is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRun:
    """``num_blocks`` consecutive blocks of the prompt that ``tier`` holds. ``wait_s``: how long a load
    of this tier would wait for what is under way there."""

    tier: str
    num_blocks: int
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Who else wants the device: ``num_waiting`` requests for their first token, in a queue or for what they
    load, and ``num_running`` that are in the steps."""

    num_waiting: int = 0
    num_running: int = 0

    @property
    def weight(self) -> float:
        """What a second of the device's time counts."""
        return min(1 + self.num_waiting + RUNNING_SHARE * self.num_running, MAX_WEIGHT)


NOBODY = Others()


class OnboardingReason(StrEnum):
    LOAD = "loading costs less"
    RECOMPUTE = "recompute is cheaper"
    NOTHING = "no tier holds more"
    UNMEASURED = "not measured yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnboardingDecision:
    """Load the first ``num_blocks`` after the device's. ``load_s``: that, and computing the rest;
    ``recompute_s``: computing all; ``limit_s``: a load that takes longer had better be given up. None where
    it is not known. ``probe``: tiers to be measured."""

    num_blocks: int
    reason: OnboardingReason
    load_s: float | None = None
    recompute_s: float | None = None
    limit_s: float | None = None
    probe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _End:
    """Where loading may end: after ``num_blocks``, which take ``load_s``; computing the rest ``rest_s``."""

    num_blocks: int
    load_s: float
    rest_s: float


class OnboardingPolicy:
    """``block_size`` tokens and ``block_bytes`` bytes per block. Facts come with their time."""

    def __init__(
        self, *, block_size: int, block_bytes: int, margin: float = MARGIN, half_life_s: float = HALF_LIFE_S
    ) -> None:
        if block_size < 1 or block_bytes < 1 or not 0 < margin <= 1:
            raise ValueError(f"block_size {block_size}, block_bytes {block_bytes}, margin {margin}")
        self._block_size = block_size
        self._block_bytes = block_bytes
        self._margin = margin
        self._half_life_s = half_life_s
        self._loads: dict[str, MeasuredTime] = {}
        self._computing = MeasuredTimeBySize(half_life_s)

    def loaded(self, tier: str, num_blocks: int, seconds: float, now_s: float) -> None:
        """A load of ``num_blocks`` took ``seconds`` from request to arrival on the device."""
        if self._is_stale(tier, now_s):
            self._loads[tier] = MeasuredTime(self._half_life_s)  # else a slow past outweighs a fast present
        self._loads[tier].observe(num_blocks * self._block_bytes, seconds, now_s)

    def computed(self, first_token: int, num_tokens: int, seconds: float, now_s: float) -> None:
        """Prefill of ``num_tokens`` after ``first_token`` tokens of context took ``seconds``."""
        self._computing.observe(first_token + num_tokens // 2, num_tokens, seconds, now_s)

    def block_load_s(self, tier: str, now_s: float) -> float | None:
        """What a block of ``tier`` takes to load, one of many, to two digits so that it does not change all
        the time; None where nothing is known."""
        known = self._loads.get(tier)
        num_bytes = MANY_BLOCKS * self._block_bytes
        seconds = None if known is None else known.estimate_s(num_bytes, now_s)
        return None if seconds is None else float(f"{seconds / MANY_BLOCKS:.2g}")

    def block_load_times(self, tiers: Iterable[tuple[str, KVTier]], now_s: float) -> BlockLoadTimes:
        """``tiers``: names, and what KV events call them; the fastest of each kind counts."""
        found: dict[KVTier, float] = {}
        for name, kind in tiers:
            seconds = self.block_load_s(name, now_s)
            if seconds is not None:
                found[kind] = min(seconds, found.get(kind, seconds))
        return BlockLoadTimes(
            host_s=found.get(KVTier.HOST), disk_s=found.get(KVTier.DISK), remote_s=found.get(KVTier.REMOTE)
        )

    def decide(
        self,
        runs: Sequence[TierRun],
        *,
        num_device_blocks: int,
        num_prompt_tokens: int,
        now_s: float,
        others: Others = NOBODY,
    ) -> OnboardingDecision:
        """``runs`` in the prompt's order, beginning after the ``num_device_blocks`` that are there. The last
        token of a prompt is always computed; a run must not hold it. ``others``: without this request."""
        runs = [run for run in runs if run.num_blocks]
        if not runs:
            return OnboardingDecision(num_blocks=0, reason=OnboardingReason.NOTHING)
        num_known_tokens = (num_device_blocks + sum(run.num_blocks for run in runs)) * self._block_size
        if num_known_tokens >= num_prompt_tokens:
            raise ValueError(f"{num_known_tokens} tokens in blocks, but {num_prompt_tokens} in the prompt")
        probe = tuple(dict.fromkeys(run.tier for run in runs if self._is_stale(run.tier, now_s)))
        recompute_s = self._compute_s(num_device_blocks, num_prompt_tokens, now_s)
        if recompute_s is None or self._load_s(runs[0], now_s) is None:
            return OnboardingDecision(
                num_blocks=0, reason=OnboardingReason.UNMEASURED, recompute_s=recompute_s, probe=probe
            )
        weight = others.weight
        ends = list(self._ends(runs, num_device_blocks, num_prompt_tokens, now_s))
        worthy = [end for end in ends if end.load_s < self._margin * weight * (recompute_s - end.rest_s)]
        best = min(worthy or ends, key=lambda end: end.load_s + weight * end.rest_s)
        return OnboardingDecision(
            num_blocks=best.num_blocks if worthy else 0,
            reason=OnboardingReason.LOAD if worthy else OnboardingReason.RECOMPUTE,
            load_s=best.load_s + best.rest_s,
            recompute_s=recompute_s,
            limit_s=weight * recompute_s,
            probe=probe,
        )

    def _ends(
        self, runs: Sequence[TierRun], num_device_blocks: int, num_prompt_tokens: int, now_s: float
    ) -> Iterator[_End]:
        load_s, num_blocks = 0.0, 0
        for run in runs:
            run_s = self._load_s(run, now_s)
            if run_s is None:
                return  # what lies behind cannot be reached without it
            load_s += run_s
            num_blocks += run.num_blocks
            rest_s = self._compute_s(num_device_blocks + num_blocks, num_prompt_tokens, now_s)
            if rest_s is not None:
                yield _End(num_blocks, load_s, rest_s)

    def _load_s(self, run: TierRun, now_s: float) -> float | None:
        known = self._loads.get(run.tier)
        run_s = None if known is None else known.estimate_s(run.num_blocks * self._block_bytes, now_s)
        return None if run_s is None else run.wait_s + run_s

    def _compute_s(self, num_blocks: int, num_prompt_tokens: int, now_s: float) -> float | None:
        first_token = num_blocks * self._block_size
        num_tokens = num_prompt_tokens - first_token
        return self._computing.estimate_s(first_token + num_tokens // 2, num_tokens, now_s)

    def _is_stale(self, tier: str, now_s: float) -> bool:
        known = self._loads.get(tier)
        return known is None or known.weight(now_s) < MIN_FRESH_WEIGHT


class EagerPolicy(OnboardingPolicy):
    """Loads whatever a tier has: to see that it works, and where somebody knows better than measurements."""

    def decide(
        self,
        runs: Sequence[TierRun],
        *,
        num_device_blocks: int,
        num_prompt_tokens: int,
        now_s: float,
        others: Others = NOBODY,
    ) -> OnboardingDecision:
        num_blocks = sum(run.num_blocks for run in runs)
        reason = OnboardingReason.LOAD if num_blocks else OnboardingReason.NOTHING
        return OnboardingDecision(num_blocks=num_blocks, reason=reason)


OnboardingRule = Literal["measured", "always"]
"""What is loaded: what was measured to cost less than computing, or whatever is there."""


def onboarding_policy(rule: OnboardingRule, *, block_size: int, block_bytes: int) -> OnboardingPolicy:
    """A new one; it has measured nothing yet."""
    policy = EagerPolicy if rule == "always" else OnboardingPolicy
    return policy(block_size=block_size, block_bytes=block_bytes)
