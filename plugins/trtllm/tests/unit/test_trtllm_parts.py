"""The parts that need no engine: words, tickets, events, statistics."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dynamo_sdk.errors import (
    ConfigError,
    EngineFailed,
    InvalidRequest,
    TicketExpired,
    TicketUnknown,
    TransferError,
)
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import generate_request
from dynamo_sdk.types import (
    BlocksCleared,
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    FinishReason,
    KVTier,
    KVTransferParams,
    ModelSpec,
    Role,
    SamplingParams,
)
from dynamo_sdk_trtllm import plugin
from dynamo_sdk_trtllm.config import TensorRTConfig, llm_arguments
from dynamo_sdk_trtllm.gauges import Gauges
from dynamo_sdk_trtllm.handover import TicketDesk, issue_ticket
from dynamo_sdk_trtllm.kv_events import RankEvents
from dynamo_sdk_trtllm.translate import ChunkMaker, priority_of, sampling_arguments

NOW_S = 1_000_000.0


def output(*tokens: int, reason: str | None = None, cached: int = 0) -> Any:
    completion = SimpleNamespace(token_ids=list(tokens), logprobs=None, finish_reason=reason)
    return SimpleNamespace(outputs=[completion], finished=reason is not None, cached_tokens=cached)


def test_cumulative_outputs_become_deltas():
    maker = ChunkMaker(generate_request([1, 2, 3]))
    first = maker.chunk(output(5))
    assert first is not None
    assert first.token_ids == (5,)
    assert maker.chunk(output(5)) is None
    last = maker.chunk(output(5, 6, 7, reason="length", cached=9))
    assert last is not None
    assert last.token_ids == (6, 7)
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.num_output_tokens, last.usage.num_cached_tokens) == (3, 3)


def test_a_decode_leg_does_not_repeat_the_first_token():
    maker = ChunkMaker(generate_request([1, 2, 3], generated=[5]), [5])
    assert maker.chunk(output(5)) is None
    chunk = maker.chunk(output(5, 6, reason="stop"))
    assert chunk is not None
    assert chunk.token_ids == (6,)
    with pytest.raises(TransferError, match="began with"):
        ChunkMaker(generate_request(), [5]).chunk(output(6))


@pytest.mark.parametrize("reason", ["cancelled", "timeout"])
def test_ends_that_are_no_ends(reason: str):
    with pytest.raises(EngineFailed, match=reason):
        ChunkMaker(generate_request()).chunk(output(1, reason=reason))


def test_only_what_is_needed_is_said():
    plain = generate_request([1], SamplingParams(max_tokens=9, temperature=0.0))
    assert sampling_arguments(plain, max_tokens=9) == {"max_tokens": 9, "top_k": 1}
    seeded = SamplingParams(max_tokens=9, temperature=0.7, seed=2**63 + 5, min_tokens=4, top_p=0.9)
    request = generate_request([1], seeded, generated=[2, 3])
    assert sampling_arguments(request, max_tokens=7) == {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 7,
    }
    assert sampling_arguments(request, max_tokens=8, num_carried=1)["min_tokens"] == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {1: 1.0}),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", float("nan")),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_what_cannot_be_honoured_is_refused(field: str, value: object):
    sampling = msgspec.convert({"max_tokens": 4, field: value}, SamplingParams)
    with pytest.raises(InvalidRequest, match=field):
        sampling_arguments(generate_request([1], sampling), max_tokens=4)


def test_priorities_turn_around():
    assert priority_of(0) == 0.5
    ours = sorted(random.Random(1).sample(range(-1000, 1000), 50))
    theirs = [priority_of(priority) for priority in ours]
    assert theirs == sorted(theirs, reverse=True)
    assert all(0 < priority < 1 for priority in theirs)


def ticket(**more: object) -> KVTransferParams:
    logprobs = [{7: SimpleNamespace(logprob=-0.5, rank=1)}]
    params = SimpleNamespace(
        first_gen_tokens=[7], opaque_state=b"\x00\xff", ctx_request_id=3, first_gen_log_probs=logprobs, **more
    )
    return issue_ticket(params, num_tokens=3, timeout_s=60.0, now_s=NOW_S)


def test_the_opaque_state_arrives_as_it_was():
    redeemed = TicketDesk().redeem(ticket(disagg_request_id=2**62), [1, 2, 3, 7], now_s=NOW_S + 1)
    assert redeemed.params["opaque_state"] == b"\x00\xff"
    assert redeemed.params["disagg_request_id"] == 2**62
    assert redeemed.logprobs == [[(7, -0.5, 1)]]
    assert redeemed.first_tokens == [7]


def test_tickets_end_before_the_blocks_do():
    assert ticket().ttl_s == pytest.approx(40)
    with pytest.raises(TicketExpired):
        TicketDesk().redeem(ticket(), [1, 2, 3, 7], now_s=NOW_S + 41)
    counted_down = msgspec.structs.replace(ticket(), ttl_s=0.0)
    with pytest.raises(TicketExpired):
        TicketDesk().redeem(counted_down, [1, 2, 3, 7], now_s=NOW_S)


def test_tickets_are_for_one_request_once():
    desk = TicketDesk()
    for tokens in ([1, 2, 3], [1, 2, 3, 8], [1, 2, 3, 4, 7]):
        with pytest.raises(TicketUnknown):
            desk.redeem(ticket(), tokens, now_s=NOW_S)
    desk.redeem(ticket(), [1, 2, 3, 7], now_s=NOW_S)
    with pytest.raises(TicketUnknown, match="used before"):
        desk.redeem(ticket(), [1, 2, 3, 7], now_s=NOW_S)
    with pytest.raises(TicketUnknown, match="cannot be read"):
        desk.redeem(KVTransferParams(connector=plugin.CONNECTOR, payload=b"\xc1"), [1], now_s=NOW_S)
    with pytest.raises(TicketUnknown, match="direct"):
        desk.redeem(KVTransferParams(connector="direct", payload=b""), [1], now_s=NOW_S)


def test_a_hand_over_without_a_first_token_is_none():
    with pytest.raises(TransferError):
        issue_ticket(SimpleNamespace(opaque_state=b"x"), num_tokens=3, timeout_s=60.0, now_s=NOW_S)


def block(name: int, *tokens: int) -> dict[str, object]:
    listed = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens]
    return {"type": "stored_block", "block_hash": name, "tokens": listed, "cache_level": 0, "priority": 35}


class Told:
    """One rank, and what it says."""

    def __init__(self) -> None:
        self.rank = RankEvents(2)
        self.number = 0

    def stored(self, *blocks: dict[str, object], parent: int | None = None) -> list[Any]:
        return self.tell({"type": "stored", "parent_hash": parent, "blocks": list(blocks)})

    def tell(self, data: dict[str, object], *, skip: int = 0) -> list[Any]:
        self.number += skip
        event = {"event_id": self.number, "window_size": 64, "data": data}
        self.number += 1
        return [each for batch in self.rank.receive(event) for each in batch.events]


def test_blocks_are_told_once_with_their_parents():
    told = Told()
    first, second = told.stored(block(2**64 - 1, 1, 2), block(5, 3, 4))
    assert first.block_hashes == (2**64 - 1,)
    assert second.parent_hash == 2**64 - 1
    assert told.stored(block(2**64 - 1, 1, 2)) == []
    assert told.stored(block(9, 7, 8), parent=1234) == []
    assert told.tell({"type": "removed", "block_hashes": [9]}) == []


def test_a_block_that_moves_is_removed_from_where_it_went():
    told = Told()
    told.stored(block(5, 3, 4))
    change = {"type": "event_diff", "old_value": 0, "new_value": 1}
    [moved] = told.tell({"type": "updated", "block_hash": 5, "cache_level": change})
    assert moved == BlocksMoved(block_hashes=(5,), tier=KVTier.DEVICE, to_tier=KVTier.HOST)
    [snapshot] = told.rank.snapshot().events
    assert isinstance(snapshot, BlocksStored)
    assert snapshot.tier is KVTier.HOST
    [removed] = told.tell({"type": "removed", "block_hashes": [5]})
    assert removed == BlocksRemoved(block_hashes=(5,), tier=KVTier.HOST)


def test_lost_events_make_what_is_held_unknown():
    told = Told()
    told.stored(block(5, 3, 4))
    cleared, stored = told.tell({"type": "stored", "parent_hash": None, "blocks": [block(6, 1, 2)]}, skip=3)
    assert isinstance(cleared, BlocksCleared)
    assert isinstance(stored, BlocksStored)
    assert told.rank.num_lost == 3
    assert len(told.rank.snapshot().events) == 1
    assert told.rank.snapshot().sequence == 2


def test_statistics_of_several_ranks():
    gauges = Gauges()
    gauges.begin(num_blocks=0, dp_size=2)
    gauges.enter("a", num_tokens=12)
    row = {
        "iterLatencyMS": 2.5,
        "attentionDpRank": 1,
        "kvCacheStats": {"usedNumBlocks": 3, "maxNumBlocks": 10, "other": 1},
        "inflightBatchingStats": {"numContextRequests": 1, "numCtxTokens": 12, "numPausedRequests": 2},
    }
    step = gauges.read(row, 5.0)
    assert (step.step, step.wall_s, step.num_prefill_tokens, step.num_preempted) == (1, 0.0025, 12, 2)
    assert step.num_free_blocks == 17
    assert gauges.read({}, 6.0).step == 2
    load = gauges.snapshot(7.0)
    assert (load.num_waiting, load.num_waiting_tokens, load.num_blocks) == (1, 12, 20)
    gauges.leave("a")
    assert gauges.snapshot(8.0).num_free_blocks == 20
    with pytest.raises(ValueError, match="cannot be read"):
        gauges.read({"iterLatencyMS": "slow"}, 9.0)


def test_it_is_found_and_imports_nothing_heavy():
    registry = Registry.of(plugin)
    assert registry.problems == ()
    assert registry.engines["trtllm"].connectors == (plugin.CONNECTOR,)


@pytest.mark.parametrize("name", ["model", "skip_tokenizer_init", "num_postprocess_workers"])
def test_some_arguments_are_ours(name: str):
    registry = Registry.of(plugin)
    with pytest.raises(ConfigError, match=f"{name} cannot be set here"):
        registry.validate(registry.engines["trtllm"], {name: "x"})


def test_older_versions_write_backends_in_lower_case():
    class Transceiver:
        def __init__(self, backend: str | None = None) -> None:
            if backend not in ("ucx", "default"):
                raise ValueError("no such backend")
            self.backend = backend

    class KvCache:
        def __init__(self, enable_block_reuse: bool = False) -> None: ...

    def llm(model: str, **anything: object) -> None: ...

    api = SimpleNamespace(LLM=llm, KvCacheConfig=KvCache, CacheTransceiverConfig=Transceiver)
    setup = EngineSetup(model=ModelSpec(name="m", path="/m"), role=Role.DECODE, connector=plugin.CONNECTOR)
    arguments = llm_arguments(api, setup, TensorRTConfig())
    assert arguments["cache_transceiver_config"].backend == "default"
    assert "disable_overlap_scheduler" not in arguments


def test_the_readme_tells_all_arguments():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `")]
    shown = {name.strip(" `"): default.strip(" `") for name, default in rows}
    real = {
        name: "none" if value is None else str(value) for name, value in TensorRTConfig().model_dump().items()
    }
    assert shown == real
    assert "never been executed against the real engine" in text
