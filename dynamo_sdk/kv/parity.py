"""Do an engine's KV events give the keys that we predict? Comparison and diagnosis of one probe.

A probe is a prompt that nobody else has sent. Its full blocks are known before it is sent; what the engine
stores while it runs is watched. When the index then holds all of them, keys are as predicted. Otherwise each
mistake that engines are known to make is assumed in turn, and the one under which the reported block hashes
are exactly those of the probe is the cause: hashes of 64 bits do not agree by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dynamo_sdk.types.kv_events import StoredDigest
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN, num_tokens

from .hashing import block_hashes, routing_seed
from .prefix_keys import PrefixKeys, prefix_keys, unpack_words


class Verdict(StrEnum):
    """``UNKNOWN``: it could not be found out."""

    OK = "ok"
    NO_EVENTS = "no_events"
    DIFFERENT = "different_keys"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """Why keys differ, as far as it can be told."""

    BLOCK_SIZE = "block size"
    SALT = "salt"
    LORA = "lora"
    TOKENS_SHIFTED = "tokens shifted"
    TOKENS_CHANGED = "tokens changed"
    PARENT = "parent"
    PARTIAL_BLOCK = "partial block"
    MISSING_BLOCK = "missing block"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityProbe:
    """``tokens``: packed, at least one full block; at most ``num_new_tokens`` are generated after them."""

    name: str
    tokens: bytes
    num_new_tokens: int
    lora: str | None = None
    cache_salt: str | None = None

    @property
    def is_plain(self) -> bool:
        """The same tokens have the same keys for everybody."""
        return not self.lora and not self.cache_salt

    def keys(self, block_size: int) -> PrefixKeys:
        """What a router would look up."""
        return prefix_keys(self.tokens, block_size, lora=self.lora, cache_salt=self.cache_salt)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFinding:
    """``first_block``: the first of ``num_blocks`` whose key differs, from 0; ``num_blocks`` = one
    too many. ``is_plain``: the probe had neither salt nor adapter. ``text``: what is wrong, for people; empty
    when nothing is."""

    probe: str
    verdict: Verdict
    is_plain: bool = False
    cause: Cause | None = None
    first_block: int = 0
    num_blocks: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Of one worker, from all of its probes."""

    findings: tuple[ProbeFinding, ...]

    @property
    def verdict(self) -> Verdict:
        """Different keys are worse than missing answers; no events at all is something else."""
        seen = {finding.verdict for finding in self.findings}
        if Verdict.DIFFERENT in seen or {Verdict.OK, Verdict.NO_EVENTS} <= seen:
            return Verdict.DIFFERENT
        for verdict in (Verdict.NO_EVENTS, Verdict.UNKNOWN, Verdict.OK):
            if verdict in seen:
                return verdict
        return Verdict.UNKNOWN

    @property
    def is_misleading(self) -> bool:
        """Whether not even the first block of a prompt without salt or adapter is where it should be: then
        the index knows nothing of the worker."""
        return any(
            finding.verdict in (Verdict.DIFFERENT, Verdict.NO_EVENTS) and not finding.first_block
            for finding in self.findings
            if finding.is_plain
        )

    def describe(self) -> str:
        """One line: the first probe with something to say, and how many are like it."""
        bad = [finding for finding in self.findings if finding.verdict is not Verdict.OK]
        if not bad:
            return f"block keys are as predicted ({', '.join(finding.probe for finding in self.findings)})"
        first = next((finding for finding in bad if finding.verdict is Verdict.DIFFERENT), bad[0])
        where = f"probe {first.probe!r}"
        if first.verdict is Verdict.DIFFERENT:
            where += f", block {first.first_block} of {first.num_blocks}"
        return f"{where}: {first.text} ({len(bad)} of {len(self.findings)} probes)"


@dataclass(frozen=True, slots=True)
class _Reported:
    """A stored block, as the engine told it. ``parent``: the name of the block before."""

    name: int
    parent: int | None


def diagnose(
    probe: ParityProbe, block_size: int, *, num_held: int, stored: Iterable[StoredDigest]
) -> ProbeFinding:
    """``num_held``: leading blocks of the probe that the index has come to hold; ``stored``: what the engine
    has stored since before it was sent, other requests' blocks among it."""
    expected = _hashes(probe, block_size)
    reported, parents = _read(stored)
    if num_held >= len(expected):
        return _finding(probe, expected, *_beyond(probe, block_size, expected, reported, parents))
    if not parents:
        text = "the engine answered and reported no stored block (none at all, or none it could name)"
        return ProbeFinding(
            probe=probe.name,
            verdict=Verdict.NO_EVENTS,
            is_plain=probe.is_plain,
            num_blocks=len(expected),
            text=text,
        )
    cause, text = (
        _misplaced(block_size, expected, num_held, reported, parents)
        or _other_seed(probe, block_size, reported)
        or _other_block_size(probe, block_size, reported)
        or _shifted(probe, block_size, reported)
        or _incomplete(expected, num_held, reported)
    )
    return _finding(probe, expected, cause, text, first_block=num_held)


_Guess = tuple[Cause, str] | None


def _finding(
    probe: ParityProbe,
    expected: Sequence[int],
    cause: Cause | None = None,
    text: str = "",
    *,
    first_block: int | None = None,
) -> ProbeFinding:
    return ProbeFinding(
        probe=probe.name,
        verdict=Verdict.OK if cause is None else Verdict.DIFFERENT,
        is_plain=probe.is_plain,
        cause=cause,
        first_block=len(expected) if first_block is None else first_block,
        num_blocks=len(expected),
        text=text,
    )


def _read(stored: Iterable[StoredDigest]) -> tuple[dict[int, _Reported], dict[int, int | None]]:
    """Reported blocks by block hash, and parents by name. Later ones count."""
    reported: dict[int, _Reported] = {}
    parents: dict[int, int | None] = {}
    for event in stored:
        parent = event.parent
        for name, block in zip(unpack_words(event.names), unpack_words(event.hashes), strict=False):
            reported[block] = _Reported(name, parent)
            parents[name] = parent
            parent = name
    return reported, parents


def _beyond(
    probe: ParityProbe,
    block_size: int,
    expected: Sequence[int],
    reported: Mapping[int, _Reported],
    parents: Mapping[int, int | None],
) -> tuple[Cause | None, str]:
    """All full blocks are there; is there one that cannot be full yet?"""
    num_full_at_end = (num_tokens(probe.tokens) + probe.num_new_tokens) // block_size
    last = reported.get(expected[-1]) if expected else None
    if last is not None and num_full_at_end == len(expected) and last.name in parents.values():
        return Cause.PARTIAL_BLOCK, "the engine reports a block that is not full"
    return None, ""


def _misplaced(
    block_size: int,
    expected: Sequence[int],
    num_held: int,
    reported: Mapping[int, _Reported],
    parents: Mapping[int, int | None],
) -> _Guess:
    """The block is reported with the right tokens, but after another one than it follows."""
    block = reported.get(expected[num_held])
    if block is None:
        return None
    before = reported.get(expected[num_held - 1]) if num_held else None
    if num_held == 0 and block.parent in parents:
        num_before = _depth(block.parent, parents)
        own = {found.name for value in expected if (found := reported.get(value)) is not None}
        if num_before is not None and block.parent not in own:
            return Cause.TOKENS_SHIFTED, f"the engine has {num_before * block_size} tokens before the prompt"
    if block.parent == (before.name if before is not None else None):
        return Cause.MISSING_BLOCK, "the block was stored and is gone again, or could not be placed"
    return Cause.PARENT, "the block is reported as the child of another block than the one before it"


def _depth(name: int | None, parents: Mapping[int, int | None]) -> int | None:
    """Blocks up to this one; None where the beginning was not seen, or there is none."""
    depth = 0
    while name is not None:
        if name not in parents or depth > len(parents):
            return None
        depth += 1
        name = parents[name]
    return depth


def _other_seed(probe: ParityProbe, block_size: int, reported: Mapping[int, _Reported]) -> _Guess:
    """The block is reported without what sets it apart from the same tokens of others."""
    guesses = (
        (Cause.SALT, "the engine's events leave the cache salt out", probe.lora, None),
        (Cause.LORA, "the engine's events leave the adapter out", None, probe.cache_salt),
        (Cause.LORA, "the engine's events leave adapter and cache salt out", None, None),
    )
    for cause, text, lora, salt in guesses:
        if (lora, salt) != (probe.lora, probe.cache_salt):
            seed = routing_seed(lora=lora, cache_salt=salt)
            if not reported.keys().isdisjoint(block_hashes(probe.tokens, block_size, seed=seed)):
                return cause, text
    return None


def _other_block_size(probe: ParityProbe, block_size: int, reported: Mapping[int, _Reported]) -> _Guess:
    """Every size is tried, biggest first, since nothing is known of it; a probe is short."""
    for size in range(num_tokens(probe.tokens), 0, -1):
        if size != block_size and not reported.keys().isdisjoint(_hashes(probe, size)):
            return Cause.BLOCK_SIZE, f"the engine's blocks have {size} tokens and not {block_size}"
    return None


def _shifted(probe: ParityProbe, block_size: int, reported: Mapping[int, _Reported]) -> _Guess:
    """The tokens are there, cut at other places."""
    seed = routing_seed(lora=probe.lora, cache_salt=probe.cache_salt)
    for offset in range(1, block_size):
        moved = block_hashes(probe.tokens[offset * BYTES_PER_TOKEN :], block_size, seed=seed)
        if not reported.keys().isdisjoint(moved):
            num_more = block_size - offset
            return Cause.TOKENS_SHIFTED, (
                f"the engine's prompt begins with {num_more} more or {offset} fewer tokens (special ones?)"
            )
    return None


def _incomplete(
    expected: Sequence[int], num_held: int, reported: Mapping[int, _Reported]
) -> tuple[Cause, str]:
    """Nothing explains the block away."""
    if num_held == len(expected) - 1 and num_held:
        return Cause.PARTIAL_BLOCK, "the engine does not report the last full block"
    if num_held or not reported.keys().isdisjoint(expected):
        return Cause.MISSING_BLOCK, "the engine does not report the block"
    return Cause.TOKENS_CHANGED, "the engine reports blocks, but none with the tokens that were sent"


def _hashes(probe: ParityProbe, block_size: int) -> Sequence[int]:
    return block_hashes(
        probe.tokens, block_size, seed=routing_seed(lora=probe.lora, cache_salt=probe.cache_salt)
    )
