"""Every mistake that is planted in an engine's events is named; an engine without one is never blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.kv import PrefixIndex, digest
from dynamo_sdk.kv.parity import Cause, ParityProbe, ParityReport, ProbeFinding, Verdict, diagnose
from dynamo_sdk.types import BlocksStored, StoredDigest, pack_tokens

BLOCK = 8
SEAT = 3


@dataclass
class Teller:
    """An engine that stores prompts, ``chunk`` blocks an event, and may tell it wrongly."""

    block_size: int = BLOCK
    chunk: int = 2
    knows_salt: bool = True
    knows_lora: bool = True
    before: tuple[int, ...] = ()  # tokens that it puts in front
    num_cut: int = 0  # tokens that it leaves out at the beginning
    change: Callable[[list[BlocksStored]], list[BlocksStored]] = lambda events: events
    index: PrefixIndex = field(default_factory=PrefixIndex)
    stored: list[StoredDigest] = field(default_factory=list)
    num_names: int = 0

    def run(self, tokens: Iterable[int], *, lora: str | None = None, salt: str | None = None) -> None:
        ids = (*self.before, *tuple(tokens)[self.num_cut :])
        names: list[int] = []
        events: list[BlocksStored] = []
        num_blocks = len(ids) // self.block_size
        for start in range(0, num_blocks, self.chunk):
            end = min(start + self.chunk, num_blocks)
            parent = names[-1] if names else None
            fresh = [self.num_names + number for number in range(end - start)]
            self.num_names += len(fresh)
            names += fresh
            events.append(
                BlocksStored(
                    block_hashes=tuple(fresh),
                    parent_hash=parent,
                    token_ids=ids[start * self.block_size : end * self.block_size],
                    block_size=self.block_size,
                    lora=lora if self.knows_lora else None,
                    cache_salt=salt if self.knows_salt else None,
                )
            )
        for event in self.change(events):
            told = digest(event)
            assert isinstance(told, StoredDigest)
            self.stored.append(told)
            self.index.apply(SEAT, told)

    def answer(self, probe: ParityProbe, tokens: Iterable[int]) -> ProbeFinding:
        self.run(tokens, lora=probe.lora, salt=probe.cache_salt)
        found = self.index.match(probe.keys(BLOCK)).get(SEAT)
        num_held = 0 if found is None else found.num_blocks
        return diagnose(probe, BLOCK, num_held=num_held, stored=self.stored)


TOKENS = tuple(Random(7).sample(range(100_000), 4 * BLOCK))


def probe_of(tokens: Iterable[int] = TOKENS, **names: str) -> ParityProbe:
    return ParityProbe(name="text", tokens=pack_tokens(tokens), num_new_tokens=1, **names)


def drop_last(events: list[BlocksStored]) -> list[BlocksStored]:
    *rest, last = events
    return [
        *rest,
        msgspec.structs.replace(last, block_hashes=last.block_hashes[:-1], token_ids=last.token_ids[:-BLOCK]),
    ]


def drop_second(events: list[BlocksStored]) -> list[BlocksStored]:
    return [events[0], *events[2:]]


def forget_parents(events: list[BlocksStored]) -> list[BlocksStored]:
    return [msgspec.structs.replace(event, parent_hash=None) for event in events]


def grandparents(events: list[BlocksStored]) -> list[BlocksStored]:
    """Each block says that it follows the one before the one that it follows."""
    shifted = [None, *[event.parent_hash for event in events]]
    return [
        msgspec.structs.replace(event, parent_hash=parent)
        for event, parent in zip(events, shifted, strict=False)
    ]


def pad_rest(events: list[BlocksStored]) -> list[BlocksStored]:
    """The block that has begun counts as full."""
    name = events[-1].block_hashes[-1]
    begun = BlocksStored(
        block_hashes=(999,), parent_hash=name, token_ids=(5, 6, *[0] * (BLOCK - 2)), block_size=BLOCK
    )
    return [*events, begun]


def silence(_events: list[BlocksStored]) -> list[BlocksStored]:
    return []


def other_words(events: list[BlocksStored]) -> list[BlocksStored]:
    return [
        msgspec.structs.replace(event, token_ids=tuple(token ^ 1 for token in event.token_ids))
        for event in events
    ]


@pytest.mark.parametrize(
    ("engine", "cause", "first_block", "says"),
    [
        (Teller(block_size=16), Cause.BLOCK_SIZE, 0, "have 16 tokens and not 8"),
        (Teller(block_size=4), Cause.BLOCK_SIZE, 0, "have 4 tokens and not 8"),
        (Teller(block_size=7), Cause.BLOCK_SIZE, 0, "have 7 tokens and not 8"),
        (Teller(block_size=32), Cause.BLOCK_SIZE, 0, "have 32 tokens and not 8"),
        (Teller(before=(1,)), Cause.TOKENS_SHIFTED, 0, "begins with 1 more or 7 fewer tokens"),
        (Teller(num_cut=1), Cause.TOKENS_SHIFTED, 0, "7 more or 1 fewer"),
        (Teller(before=tuple(range(BLOCK))), Cause.TOKENS_SHIFTED, 0, "has 8 tokens before the prompt"),
        (Teller(change=drop_last), Cause.PARTIAL_BLOCK, 3, "not report the last full block"),
        (Teller(change=pad_rest), Cause.PARTIAL_BLOCK, 4, "a block that is not full"),
        (Teller(chunk=1, change=forget_parents), Cause.PARENT, 1, "child of another block"),
        (Teller(chunk=1, change=grandparents), Cause.PARENT, 1, "child of another block"),
        (Teller(chunk=1, change=drop_second), Cause.MISSING_BLOCK, 1, "does not report the block"),
        (Teller(change=other_words), Cause.TOKENS_CHANGED, 0, "none with the tokens that were sent"),
    ],
)
def test_a_planted_mistake_is_named(engine: Teller, cause: Cause, first_block: int, says: str) -> None:
    engine.run(range(3 * BLOCK))  # somebody else's
    finding = engine.answer(probe_of(), TOKENS)
    assert (finding.verdict, finding.cause, finding.first_block) == (Verdict.DIFFERENT, cause, first_block)
    assert says in finding.text


@pytest.mark.parametrize(
    ("engine", "names", "cause", "says"),
    [
        (Teller(knows_salt=False), {"cache_salt": "s"}, Cause.SALT, "leave the cache salt out"),
        (Teller(knows_lora=False), {"lora": "a"}, Cause.LORA, "leave the adapter out"),
        (Teller(knows_lora=False), {"lora": "a", "cache_salt": "s"}, Cause.LORA, "leave the adapter out"),
        (Teller(knows_salt=False), {"lora": "a", "cache_salt": "s"}, Cause.SALT, "leave the cache salt out"),
        (
            Teller(knows_lora=False, knows_salt=False),
            {"lora": "a", "cache_salt": "s"},
            Cause.LORA,
            "leave adapter and cache salt out",
        ),
    ],
)
def test_what_sets_tokens_apart_is_missed(
    engine: Teller, names: dict[str, str], cause: Cause, says: str
) -> None:
    finding = engine.answer(probe_of(**names), TOKENS)
    assert (finding.verdict, finding.cause, finding.first_block) == (Verdict.DIFFERENT, cause, 0)
    assert says in finding.text
    plain = Teller(knows_lora=engine.knows_lora, knows_salt=engine.knows_salt).answer(probe_of(), TOKENS)
    assert plain.verdict is Verdict.OK


def test_silence_is_not_a_difference() -> None:
    finding = Teller(change=silence).answer(probe_of(), TOKENS)
    assert (finding.verdict, finding.cause) == (Verdict.NO_EVENTS, None)
    assert "no stored block" in finding.text


def test_the_worst_finding_is_the_workers() -> None:
    good = Teller().answer(probe_of(), TOKENS)
    silent = Teller(change=silence).answer(probe_of(), TOKENS)
    wrong = Teller(before=(1,)).answer(probe_of(), TOKENS)
    unknown = ProbeFinding(probe="chat", verdict=Verdict.UNKNOWN, text="nobody answered")
    assert ParityReport((good, good)).verdict is Verdict.OK
    assert ParityReport((silent, silent)).verdict is Verdict.NO_EVENTS
    assert ParityReport((good, silent)).verdict is Verdict.DIFFERENT, "events for some prompts only"
    assert ParityReport((good, unknown)).verdict is Verdict.UNKNOWN
    assert ParityReport(()).verdict is Verdict.UNKNOWN
    report = ParityReport((good, unknown, wrong))
    assert report.verdict is Verdict.DIFFERENT
    assert report.describe().startswith("probe 'text', block 0 of 4: the engine's prompt begins with 1 more")
    assert report.describe().endswith("(2 of 3 probes)")
    assert ParityReport((good,)).describe() == "block keys are as predicted (text)"


def test_only_plain_keys_that_are_wrong_from_the_start_make_events_useless() -> None:
    wrong = Teller(before=(1,)).answer(probe_of(), TOKENS)
    short = Teller(change=drop_last).answer(probe_of(), TOKENS)
    unsalted = Teller(knows_salt=False).answer(probe_of(cache_salt="s"), TOKENS)
    silent = Teller(change=silence).answer(probe_of(), TOKENS)
    assert [ParityReport((found,)).is_misleading for found in (wrong, short, unsalted, silent)] == [
        True,
        False,
        False,
        True,
    ]


@settings(max_examples=200)
@given(
    block_size=st.sampled_from([BLOCK]),
    chunk=st.integers(1, 5),
    tokens=st.lists(st.integers(0, 3), min_size=BLOCK, max_size=6 * BLOCK),
    others=st.lists(st.lists(st.integers(0, 3), max_size=4 * BLOCK), max_size=4),
    salt=st.none() | st.just("s"),
    lora=st.none() | st.just("a"),
)
def test_a_correct_engine_is_never_blamed(
    block_size: int,
    chunk: int,
    tokens: list[int],
    others: list[list[int]],
    salt: str | None,
    lora: str | None,
) -> None:
    """Other requests before it may even share its blocks' tokens, as others' salts and adapters."""
    engine = Teller(block_size=block_size, chunk=chunk)
    for other in others:
        engine.run(other, salt="other")
    probe = ParityProbe(name="text", tokens=pack_tokens(tokens), num_new_tokens=1, lora=lora, cache_salt=salt)
    finding = engine.answer(probe, tokens)
    assert (finding.verdict, finding.text) == (Verdict.OK, "")


def test_a_full_block_of_generated_tokens_is_no_mistake() -> None:
    engine = Teller(change=pad_rest)
    probe = ParityProbe(name="text", tokens=pack_tokens(TOKENS), num_new_tokens=BLOCK)
    assert engine.answer(probe, TOKENS).verdict is Verdict.OK
