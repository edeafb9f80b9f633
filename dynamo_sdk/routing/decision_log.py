"""Decisions with all that they were made of, small enough to keep: hashes and counts, no text and no tokens.

A log is a sequence of frames, each a length and a deflated msgpack record, in the order in which a router saw
them: what it decided, and what became of requests. ``replay`` gives the same to another router, or to
the same one, which then decides the same: time and chance are in the records.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from struct import Struct

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import (
    Candidate,
    Freed,
    PrefillDone,
    Routed,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.types import Role, WorkerId

_LENGTH = Struct("<I")
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_COMPRESSION = 1


class Decided(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """``seed``: of the chance that the router had. ``block_keys``: packed, eight bytes a block."""

    now_s: float
    seed: int
    request_id: str
    model: str
    role: Role
    num_tokens: int
    block_size: int | None
    max_output_tokens: int | None
    block_keys: bytes
    priority: int
    session: str | None
    tenant: str | None
    asked_worker: WorkerId | None
    candidates: list[Candidate]
    worker_id: WorkerId
    dp_rank: int


class Heard(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A fact, in the one field that is set."""

    now_s: float
    routed: Routed | None = None
    prefill_done: PrefillDone | None = None
    freed: Freed | None = None


Entry = Decided | Heard

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def decided(
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    decision: RoutingDecision,
    *,
    now_s: float,
    seed: int,
) -> bytes:
    """The frame of a decision. Encode it at once: candidates change."""
    return _frame(
        Decided(
            now_s=now_s,
            seed=seed,
            request_id=request.request_id,
            model=request.model,
            role=request.role,
            num_tokens=request.num_tokens,
            block_size=request.block_size,
            max_output_tokens=request.max_output_tokens,
            block_keys=b"".join([key.to_bytes(8, "little") for key in request.block_keys]),
            priority=request.priority,
            session=_hashed(request.session),
            tenant=_hashed(request.tenant),
            asked_worker=request.worker_id,
            candidates=list(candidates),
            worker_id=decision.worker_id,
            dp_rank=decision.dp_rank,
        )
    )


def heard(fact: RouterFact, now_s: float) -> bytes:
    """The frame of a fact."""
    match fact:
        case Routed():
            return _frame(Heard(now_s, routed=fact))
        case PrefillDone():
            return _frame(Heard(now_s, prefill_done=fact))
        case Freed():
            return _frame(Heard(now_s, freed=fact))


def read_log(data: bytes) -> Iterator[Entry]:
    """The entries of a log. A last frame that is cut off, as after a crash, is left out. Raises
    ``InvalidRequest`` for what is no log."""
    start = 0
    while start + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        end = start + _LENGTH.size + length
        if length > _MAX_FRAME_BYTES:
            raise InvalidRequest(f"not a decision log: a frame of {length} bytes at byte {start}")
        if end > len(data):
            return
        try:
            yield _decoder.decode(zlib.decompress(data[start + _LENGTH.size : end]))
        except (zlib.error, msgspec.DecodeError) as error:
            raise InvalidRequest(f"not a decision log: byte {start}: {error}") from error
        start = end


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision of the log, and what the router made of it now. ``error``: why it chose nobody."""

    entry: Decided
    decision: RoutingDecision | None
    error: str | None = None

    @property
    def is_same(self) -> bool:
        return self.decision is not None and (self.decision.worker_id, self.decision.dp_rank) == (
            self.entry.worker_id,
            self.entry.dp_rank,
        )


def replay(entries: Iterable[Entry], router: Router, *, is_explaining: bool = False) -> Iterator[Replayed]:
    """Let ``router`` decide again. One that remembers (turns, sessions) needs the log from its beginning."""
    rng = Random()
    for entry in entries:
        if isinstance(entry, Heard):
            fact = entry.routed or entry.prefill_done or entry.freed
            if fact is not None:
                router.observe(fact, entry.now_s)
            continue
        rng.seed(entry.seed)
        context = RoutingContext(now_s=entry.now_s, rng=rng, is_explaining=is_explaining)
        try:
            decision = router.select(_request(entry), entry.candidates, context)
        except Exception as error:  # a router is somebody's plugin
            yield Replayed(entry, None, f"{type(error).__name__}: {error}")
        else:
            yield Replayed(entry, decision)


def _request(entry: Decided) -> RoutingRequest:
    return RoutingRequest(
        request_id=entry.request_id,
        model=entry.model,
        role=entry.role,
        num_tokens=entry.num_tokens,
        block_size=entry.block_size,
        max_output_tokens=entry.max_output_tokens,
        block_keys=memoryview(entry.block_keys).cast("Q") if entry.block_keys else (),
        priority=entry.priority,
        session=entry.session,
        tenant=entry.tenant,
        worker_id=entry.asked_worker,
    )


def _frame(entry: Entry) -> bytes:
    body = zlib.compress(_encoder.encode(entry), _COMPRESSION)
    return _LENGTH.pack(len(body)) + body


def _hashed(text: str | None) -> str | None:
    """What a client calls its session may say who it is."""
    return None if text is None else blake2b(text.encode(), digest_size=8).hexdigest()
