"""The scheduler's half of the KV tiers, against a scheduler that is only told what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import EagerPolicy, OnboardingPolicy
from dynamo_sdk.types import KVSource, KVTier
from dynamo_sdk.types.tokens import pack_tokens
from dynamo_sdk_vllm.tiers.events import TierEvents
from dynamo_sdk_vllm.tiers.held import PENDING_S, HeldBlocks
from dynamo_sdk_vllm.tiers.messages import Report, TierChange, TierLoad
from dynamo_sdk_vllm.tiers.names import BlockNamer
from dynamo_sdk_vllm.tiers.planning import PATIENCE_S, Planner, StepFacts
from dynamo_sdk_vllm.tiers.sharing import HINT, hint

SIZE = 4
KINDS = {"ram": KVTier.HOST, "disk": KVTier.DISK, "shared": KVTier.REMOTE}


@dataclass
class Request:
    """As vLLM's."""

    request_id: str
    all_token_ids: list[int]
    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    priority: int = 0
    cache_salt: str | None = None
    lora_request: Any = None
    mm_features: list[object] = field(default_factory=list)
    prompt_embeds: object | None = None
    sampling_params: object | None = None
    block_hashes: list[bytes] = field(default_factory=lambda: [b"%d" % place for place in range(99)])

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.all_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


class Bench:
    """One planner and its clock; ``step`` is what a step of vLLM's scheduler comes to."""

    def __init__(
        self,
        policy: OnboardingPolicy | None = None,
        *,
        num_ranks: int = 1,
        has_heard: bool = True,
        tiers: Sequence[str] = ("ram", "disk"),
    ) -> None:
        self.now_s = 100.0
        self.planner = Planner(
            namer=BlockNamer(b"model", SIZE, lambda folder: folder.name),
            events=TierEvents([KINDS[name] for name in tiers]),
            held=HeldBlocks(tiers, num_ranks),
            policy=policy or EagerPolicy(block_size=SIZE, block_bytes=64),
            block_size=SIZE,
            counts_uses=False,
            now_s=lambda: self.now_s,
        )
        if num_heard := has_heard * num_ranks:
            self.planner.heard([Report(rank=rank, step=0) for rank in range(num_heard)])

    def admit(
        self, request: Request, block_ids: list[int], *, num_cached: int = 0, num_ours: int = 0
    ) -> None:
        self.planner.admitted(request, block_ids, num_ours)
        request.num_computed_tokens = num_cached + num_ours

    def step(self, num_tokens: dict[Request, int], **facts: Any) -> Any:
        scheduled = {request.request_id: count for request, count in num_tokens.items()}
        orders = self.planner.orders(StepFacts(scheduled, **facts))
        for request, count in num_tokens.items():
            request.num_computed_tokens += count
        return orders

    def whole(self, request: Request, block_ids: list[int]) -> Any:
        """A request from nothing to the end of its prompt, in one step."""
        assert self.planner.match(request, 0) == 0
        self.admit(request, block_ids)
        return self.step({request: request.num_tokens})

    def stored(self, orders: Any, *, tier: int = 0, rank: int = 0) -> None:
        keys = tuple(block.key for block, _ in orders.saves)
        self.heard(rank=rank, step=orders.step, settled=orders.step, changes=[TierChange(tier, True, keys)])

    def heard(self, **report: Any) -> None:
        self.planner.heard([Report(**{"rank": 0, "step": 0, **report})])


Request.__hash__ = object.__hash__  # type: ignore[method-assign]


def prompt(num_tokens: int, first: int = 1) -> list[int]:
    return list(range(first, first + num_tokens))


def test_full_blocks_are_saved_once_with_what_they_are():
    bench = Bench()
    orders = bench.whole(Request("a", prompt(10)), [7, 8, 9])
    (first, one), (second, two) = orders.saves
    assert (one, two) == (7, 8)
    assert (first.parent, second.parent) == (None, first.key)
    assert first.tokens == pack_tokens(prompt(4))
    assert set(orders.overwritten) == {7, 8, 9}
    bench.stored(orders)
    again = Request("b", prompt(10))
    bench.planner.match(again, 8)
    bench.admit(again, [7, 8, 1], num_cached=8)
    assert bench.step({again: 2}).saves == []


def test_a_prompt_in_chunks_is_saved_as_it_goes_and_so_are_generated_tokens():
    bench = Bench()
    request = Request("a", prompt(10))
    bench.planner.match(request, 0)
    bench.admit(request, [7, 8])
    assert [block_id for _, block_id in bench.step({request: 6}).saves] == [7]
    assert [block_id for _, block_id in bench.step({request: 4}, new_block_ids={"a": [9]}).saves] == [8]
    request.all_token_ids.append(99)
    assert bench.step({request: 1}).saves == []
    request.all_token_ids.append(98)
    ((block, block_id),) = bench.step({request: 1}).saves
    assert (block_id, block.tokens) == (9, pack_tokens([9, 10, 99, 98]))


def test_a_prompt_shorter_than_a_block_is_saved_when_the_block_is_full():
    bench = Bench()
    request = Request("a", prompt(3))
    bench.planner.match(request, 0)
    bench.admit(request, [7])
    assert bench.step({request: 3}).saves == []
    request.all_token_ids.append(99)
    assert [block_id for _, block_id in bench.step({request: 1}).saves] == [7]


def test_after_other_weights_nothing_from_before_is_used():
    bench = Bench()
    bench.stored(bench.whole(Request("a", prompt(9)), [1, 2, 3]))
    before = Request("b", prompt(9))
    assert bench.planner.match(before, 0) == 8
    bench.planner.start_anew(b"1")
    assert bench.planner.match(before, 0) == 0
    bench.admit(before, [4, 5, 6])
    assert bench.step({before: 9}).saves == []
    after = bench.whole(Request("c", prompt(9)), [7, 8, 9])
    assert len(after.saves) == 2
    bench.planner.start_anew(b"2")
    bench.stored(after)
    assert bench.planner.match(Request("d", prompt(9)), 0) == 0


def test_tokens_that_are_not_known_yet_are_not_saved():
    """Drafts, and tokens that are sampled while the next step is planned."""
    bench = Bench()
    request = Request("a", prompt(7))
    bench.planner.match(request, 0)
    bench.admit(request, [7, 8, 9])
    assert [block_id for _, block_id in bench.step({request: 12}).saves] == [7]


def test_what_is_held_is_loaded_into_the_blocks_behind_those_on_the_device():
    bench = Bench()
    saved = bench.whole(Request("a", prompt(13)), [1, 2, 3, 4])
    bench.stored(saved)
    bench.planner.ended("a")
    request = Request("b", prompt(13))
    assert bench.planner.match(request, 4) == 8
    assert bench.planner.match(request, 4) == 8, "it may be asked often"
    bench.admit(request, [1, 5, 6, 7], num_cached=4, num_ours=8)
    orders = bench.step({})
    (load,) = orders.loads
    assert (load.request_id, load.block_ids) == ("b", (5, 6))
    assert load.keys == tuple(block.key for block, _ in saved.saves[1:])
    assert set(orders.overwritten) == {5, 6, 7}, "block 1 keeps what it has"
    assert orders.is_idle
    bench.admit(request, [1, 5, 6, 7], num_cached=12)  # vLLM says so again when the load is over
    orders = bench.step({request: 1})
    assert set(orders.overwritten) == {7}
    assert orders.saves == [] == orders.loads


def test_the_last_token_is_computed():
    bench = Bench()
    bench.stored(bench.whole(Request("a", prompt(8)), [1, 2]))
    assert bench.planner.match(Request("b", prompt(8)), 0) == 4


@pytest.mark.parametrize(
    "other",
    [{"cache_salt": "s"}, {"lora_request": SimpleNamespace(lora_name="l", lora_int_id=1, lora_path="/l")}],
)
def test_tenants_and_adapters_share_nothing(other: dict[str, Any]):
    bench = Bench()
    bench.stored(bench.whole(Request("a", prompt(9)), [1, 2, 3]))
    assert bench.planner.match(Request("b", prompt(9), **other), 0) == 0
    assert bench.planner.match(Request("c", prompt(9)), 0) == 8


def test_images_and_embeddings_stay_on_the_device():
    bench = Bench()
    for request in (
        Request("a", prompt(9), mm_features=[object()]),
        Request("b", prompt(9), prompt_embeds=object()),
    ):
        orders = bench.whole(request, [1, 2, 3])
        assert orders.saves == []
        assert set(orders.overwritten) == {1, 2, 3}


def test_blocks_that_are_being_saved_are_waited_for_a_little():
    bench = Bench()
    saved = bench.whole(Request("a", prompt(9)), [1, 2, 3])
    request = Request("b", prompt(9))
    assert bench.planner.match(request, 0) is None
    bench.now_s += 1.01 * PATIENCE_S
    assert bench.planner.match(request, 0) == 0
    bench.stored(saved)
    assert bench.planner.match(Request("c", prompt(9)), 0) == 8


def test_nothing_is_decided_before_the_workers_have_said_what_is_there_from_before():
    bench = Bench(has_heard=False)
    request = Request("a", prompt(9))
    assert bench.planner.match(request, 0) is None
    bench.heard(changes=[TierChange(1, True, tuple(bench.planner._requests["a"].keys))])
    assert bench.planner.match(request, 0) == 8


def test_what_no_tier_took_is_not_waited_for():
    bench = Bench()
    orders = bench.whole(Request("a", prompt(9)), [1, 2, 3])
    bench.heard(step=orders.step, settled=orders.step)
    assert bench.planner.match(Request("b", prompt(9)), 0) == 0
    orders = bench.whole(Request("c", prompt(9)), [4, 5, 6])
    assert len(orders.saves) == 2, "and it is offered again"
    bench.now_s += PENDING_S
    assert bench.planner.match(Request("d", prompt(9)), 0) == 0


def test_a_request_that_was_preempted_loads_what_it_had_generated_too():
    bench = Bench()
    request = Request("a", prompt(6))
    bench.stored(bench.whole(request, [1, 2]))
    request.all_token_ids += [50, 51, 52]
    bench.stored(bench.step({request: 2}))
    request.num_computed_tokens = 0
    assert bench.planner.match(request, 0) == 8
    bench.admit(request, [3, 4, 5], num_ours=8)
    orders = bench.step({}, resumed={"a"}, new_block_ids={"a": [3, 4, 5]})
    assert orders.loads[0].block_ids == (3, 4)


def test_a_load_that_fails_is_not_tried_again_by_the_same_request():
    bench = Bench()
    saved = bench.whole(Request("a", prompt(13)), [1, 2, 3, 4])
    bench.stored(saved)
    request = Request("b", prompt(13))
    assert bench.planner.match(request, 0) == 12
    bench.admit(request, [5, 6, 7, 8], num_ours=12)
    bench.step({})
    keys = [block.key for block, _ in saved.saves]
    bench.heard(step=2, settled=2, lost=[keys[1]], cut_short=["b"])
    request.num_computed_tokens = 0
    assert bench.planner.match(request, 0) == 0
    assert bench.planner.match(Request("c", prompt(13)), 0) == 4, "others go as far as the hole"


def test_the_blocks_of_a_load_within_the_step_are_not_trusted():
    """Another connector loads synchronously: it may say after the step that it could not."""
    bench = Bench()
    request = Request("a", prompt(12))
    bench.planner.match(request, 0)
    bench.admit(request, [1, 2, 3])
    request.num_computed_tokens = 8  # as vLLM sets it between the two
    assert bench.step({request: 4}).saves == []


def test_all_workers_must_have_their_part():
    bench = Bench(num_ranks=2)
    orders = bench.whole(Request("a", prompt(9)), [1, 2, 3])
    bench.stored(orders)
    bench.now_s += PENDING_S
    assert bench.planner.match(Request("b", prompt(9)), 0) == 0
    bench.stored(orders, rank=1)
    assert bench.planner.match(Request("c", prompt(9)), 0) == 8


def test_loading_must_have_been_measured_to_win():
    policy = OnboardingPolicy(block_size=SIZE, block_bytes=64)
    bench = Bench(policy)
    request = Request("a", prompt(64))
    bench.planner.match(request, 0)
    bench.admit(request, list(range(16)))
    orders = bench.step({request: 64})
    bench.now_s += 1.0  # computing 64 tokens takes a second
    bench.stored(orders)
    asks = Request("b", prompt(64))
    assert bench.planner.match(asks, 0) == 0, "nobody has measured the tier"
    bench.admit(asks, list(range(20, 36)))
    (sighting,) = bench.step({}).sightings
    assert sighting.is_probe
    bench.heard(step=2, settled=2, loads=[TierLoad("ram", 1, 0.001), TierLoad("ram", 15, 0.01)])
    assert bench.planner.match(Request("c", prompt(64)), 0) == 60
    slow = [TierLoad("ram", 1, 3.0), TierLoad("ram", 15, 40.0)] * 20
    bench.now_s += 3600
    bench.heard(step=2, settled=2, loads=slow)
    bench.whole(Request("d", prompt(64, first=500)), list(range(40, 56)))
    bench.now_s += 1.0
    bench.heard(step=3, settled=3)
    assert bench.planner.match(Request("e", prompt(64)), 0) == 0


def test_a_busy_device_leaves_work_to_a_slower_tier():
    bench = Bench(OnboardingPolicy(block_size=SIZE, block_bytes=64))
    orders = bench.whole(Request("a", prompt(64)), list(range(16)))
    bench.now_s += 1.0  # computing 64 tokens takes a second, loading them 1.5
    bench.stored(orders)
    bench.heard(step=1, settled=1, loads=[TierLoad("ram", 1, 0.1), TierLoad("ram", 15, 1.5)])
    assert bench.planner.match(Request("b", prompt(64)), 0) == 0
    others = [Request(f"other{number}", prompt(9, first=900 + 9 * number)) for number in range(20)]
    bench.step(dict.fromkeys(others, 1))
    assert bench.planner.match(Request("c", prompt(64)), 0) == 60


def test_what_comes_and_goes_is_told_under_vllms_names():
    bench = Bench()
    saved = bench.whole(Request("a", prompt(9)), [1, 2, 3])
    assert bench.planner.events.take() == []
    bench.stored(saved)
    first, second = bench.planner.events.take()
    assert (first.tier, first.is_stored, first.block.name, first.block.parent) == (
        KVTier.HOST,
        True,
        b"0",
        None,
    )
    assert (second.block.parent, second.block.tokens) == (b"0", pack_tokens([5, 6, 7, 8]))
    keys = [block.key for block, _ in saved.saves]
    bench.heard(changes=[TierChange(0, False, (keys[1],)), TierChange(0, False, (keys[1],))])
    (gone,) = bench.planner.events.take()
    assert (gone.is_stored, gone.block.name) == (False, b"1")


def test_what_a_disk_has_from_before_is_told_when_it_is_asked_for():
    bench, other = Bench(), Bench()
    keys = tuple(block.key for block, _ in other.whole(Request("a", prompt(9)), [1, 2, 3]).saves)
    bench.heard(changes=[TierChange(1, True, keys)])
    assert bench.planner.events.take() == []
    bench.planner.match(Request("b", prompt(9)), 0)
    assert [(event.tier, event.block.name) for event in bench.planner.events.take()] == [
        (KVTier.DISK, b"0"),
        (KVTier.DISK, b"1"),
    ]
    bench.heard(lost=[keys[0]])
    assert [event.is_stored for event in bench.planner.events.take()] == [False]


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_vllm_that_keeps_blocks_to_itself_is_refused(is_tracked: bool):
    """A ``MultiConnector`` of before 0.26: what is saved would have other blocks' names."""
    bench, request = Bench(), Request("r", list(range(9)))
    if is_tracked:
        assert bench.planner.match(request, 0) == 0
    with pytest.raises(ConfigError, match=r"0\.26"):
        bench.admit(request, [])


def hinted(name: str, num_blocks: int, num_tokens: int = 17) -> Request:
    source = KVSource(worker_id="w", address="unix:/w", num_blocks=num_blocks)
    return Request(name, prompt(num_tokens), sampling_params=SimpleNamespace(extra_args=hint(source)))


def test_what_another_worker_has_is_loaded_behind_what_is_here():
    bench = Bench(tiers=("ram", "shared"))
    bench.heard(peer_tiers=[1])
    assert bench.planner.match(Request("unhinted", prompt(17)), 0) == 0
    assert bench.planner.match(hinted("b", 3), 12) == 0, "the device has as much"
    request = hinted("a", 3)
    assert bench.planner.match(request, 4) == 8
    bench.admit(request, [1, 2, 3, 4, 5], num_cached=4, num_ours=8)
    (load,) = bench.step({}).loads
    assert load.block_ids == (2, 3)
    assert load.source is not None
    assert (load.source.address, load.source.num_blocks) == ("unix:/w", 2), "of those that are loaded"
    bench.admit(request, [1, 2, 3, 4, 5], num_cached=12)  # once it is there
    orders = bench.step({request: 5})
    assert [block_id for _, block_id in orders.saves] == [1, 2, 3, 4], "what was read goes down here, too"
    assert [event.tier for event in bench.planner.events.take()] == [], "nobody is told that it is held"


def test_a_worker_that_does_not_give_what_it_was_said_to_have_is_not_asked_again():
    bench = Bench(tiers=("ram", "shared"))
    bench.heard(peer_tiers=[1])
    request = hinted("a", 4)
    assert bench.planner.match(request, 0) == 16
    bench.admit(request, [1, 2, 3, 4, 5], num_ours=16)
    (load,) = bench.step({}).loads
    bench.heard(step=2, settled=2, lost=[load.keys[1]], cut_short=["a"])
    request.num_computed_tokens = 4
    assert bench.planner.match(request, 4) == 0


def test_a_peer_of_which_nothing_is_known_is_measured():
    bench = Bench(OnboardingPolicy(block_size=SIZE, block_bytes=64), tiers=("ram", "shared"))
    bench.heard(peer_tiers=[1])
    request = hinted("a", 3)
    assert bench.planner.match(request, 0) == 0
    bench.admit(request, [1, 2, 3, 4, 5])
    (sighting,) = bench.step({request: 17}).sightings
    assert sighting.is_probe
    assert sighting.source is not None
    assert (sighting.source.num_blocks, len(sighting.keys)) == (3, 4)


@pytest.mark.parametrize("extra_args", [None, {}, {HINT: "w"}, {HINT: {"address": "unix:/w"}}])
def test_what_makes_no_sense_is_no_hint(extra_args: object):
    bench = Bench(tiers=("shared",))
    bench.heard(peer_tiers=[0])
    request = Request("a", prompt(17), sampling_params=SimpleNamespace(extra_args=extra_args))
    assert bench.planner.match(request, 0) == 0
