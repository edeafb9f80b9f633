"""Two processes of vLLM, without vLLM: one reads the blocks that the other one has saved."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

torch = pytest.importorskip("torch")

from dynamo_sdk.errors import ConfigError  # noqa: E402
from dynamo_sdk.interfaces import CacheKey, KVSharing, KVSharingStatistics  # noqa: E402
from dynamo_sdk.kv import CachedBlock  # noqa: E402
from dynamo_sdk.plugins import Registry  # noqa: E402
from dynamo_sdk.types import KVSource  # noqa: E402
from dynamo_sdk.types.plan import KVTierPlan  # noqa: E402
from dynamo_sdk_vllm.tiers.config import Shard, setups_of  # noqa: E402
from dynamo_sdk_vllm.tiers.memory import PagedMemory  # noqa: E402
from dynamo_sdk_vllm.tiers.messages import LoadOrder, Orders, Report, Sighting  # noqa: E402
from dynamo_sdk_vllm.tiers.sharing import answer, answered, ask, asked  # noqa: E402
from dynamo_sdk_vllm.tiers.worker import TierWorker  # noqa: E402

SIZE, NUM_BLOCKS = 4, 8
KEYS = tuple(CacheKey(bytes([number]) * 16) for number in range(3))
RAM = KVTierPlan(name="ram", kind="ram", capacity_bytes=1 << 20)
SHARED = KVTierPlan(name="shared", kind="shared")
SHARING = KVSharing(address="tcp:127.0.0.1:0", secret="known to both")
TIMEOUT_S = 30.0


class Process:
    """A ``TierWorker``, its pages, and what a scheduler would order."""

    def __init__(
        self,
        pages: torch.Tensor,
        plans: list[KVTierPlan],
        sharing: KVSharing | None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.pages = pages
        memory = PagedMemory({"layer": pages}, num_blocks=NUM_BLOCKS, block_size=SIZE)
        setups = setups_of(plans, Registry.of(), Shard(), None if sharing is None else sharing.secret)
        self.worker = TierWorker(setups, memory, NUM_BLOCKS, rank, num_ranks, sharing)
        self.step = 0

    def run(self, **orders: object) -> Report:
        self.step += 1
        given = Orders(step=self.step, is_idle=True, **orders)  # type: ignore[arg-type]
        self.worker.begin(given)
        self.worker.load(given)
        self.worker.end(given)
        self.last = self.worker.report(given)
        return self.last

    def save(self) -> None:
        """``KEYS``, which are in the first blocks."""
        saves = [(CachedBlock(key, None, b"", None, None), place) for place, key in enumerate(KEYS)]
        report = self.run(saves=saves)
        changes, deadline_s = report.changes, monotonic() + TIMEOUT_S
        while report.settled < self.step:
            report = self.run()
            changes += report.changes
            assert monotonic() < deadline_s
        assert {key for change in changes for key in change.keys} == set(KEYS), (
            "under the names they have here"
        )

    def load(self, address: str, num_blocks: int = len(KEYS)) -> set[int]:
        """``KEYS`` into the last blocks; which of those could not be filled."""
        source = KVSource(worker_id="w", address=address, num_blocks=num_blocks)
        self.run(loads=[LoadOrder("r", KEYS, (5, 6, 7), None, source)])
        deadline_s = monotonic() + TIMEOUT_S
        while self.worker.take_loaded() != {"r"}:
            self.run()
            assert monotonic() < deadline_s
        self.last = self.run() if not self.last.cut_short else self.last
        return self.worker.take_invalid()


@contextmanager
def process(
    pages: torch.Tensor | None = None,
    plans: list[KVTierPlan] = [RAM, SHARED],  # noqa: B006
    sharing: KVSharing | None = SHARING,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[Process]:
    pages = torch.zeros(NUM_BLOCKS, 4, 4, 8) if pages is None else pages
    started = Process(pages, plans, sharing, rank, num_ranks)
    try:
        started.worker.start()
        yield started
    finally:
        started.worker.close()


def numbered(like: torch.Tensor) -> torch.Tensor:
    return like.copy_(torch.arange(like.numel(), dtype=torch.float32).view(like.shape))


def test_one_process_reads_what_another_one_has_saved():
    with process(numbered(torch.zeros(NUM_BLOCKS, 4, 4, 8))) as owner, process() as reader:
        owner.save()
        address = owner.worker.shared_at
        assert address is not None
        assert reader.load(address) == set()
        assert torch.equal(reader.pages[5:], owner.pages[:3])
        assert owner.worker.take_sharing() == KVSharingStatistics(num_lookups=3, num_blocks=3)
        assert owner.worker.take_sharing() is None, "nothing new"
        with process() as other:
            assert other.load(address, num_blocks=1) == {6, 7}, "the rest was not said to be there"
            assert other.last.cut_short == ["r"]


def test_blocks_of_another_layout_are_not_found():
    """Of the same shape, the same size and the same name: the heads are outside the tokens here."""
    pages = torch.zeros(NUM_BLOCKS, 4, 4, 8)
    with process(numbered(torch.zeros_like(pages))) as owner, process(pages.permute(0, 2, 1, 3)) as reader:
        owner.save()
        assert owner.worker.shared_at is not None
        assert reader.load(owner.worker.shared_at) == {5, 6, 7}
        assert not reader.pages.any()


def test_each_rank_reads_its_part_from_the_one_of_the_same_rank(tmp_path: Path):
    sharing = KVSharing(address=f"unix:{tmp_path}/tiers")
    with (
        process(numbered(torch.zeros(NUM_BLOCKS, 4, 4, 8)), sharing=sharing, num_ranks=2) as first,
        process(
            numbered(torch.zeros(NUM_BLOCKS, 4, 4, 8)) + 1, sharing=sharing, rank=1, num_ranks=2
        ) as second,
        process(rank=1, num_ranks=2) as reader,
        process() as alone,
    ):
        first.save()
        second.save()
        assert first.worker.shared_at == f"unix:{tmp_path}/tiers.0"
        assert reader.load(f"{first.worker.shared_at},{second.worker.shared_at}") == set()
        assert torch.equal(reader.pages[5:], second.pages[:3])
        assert reader.load(f"{second.worker.shared_at},{first.worker.shared_at}") == {5, 6, 7}, (
            "a part of another rank"
        )
        assert alone.load(f"{first.worker.shared_at},{second.worker.shared_at}") == {5, 6, 7}
        assert not alone.pages.any()


def test_a_hint_has_the_way_measured():
    with process() as owner, process() as reader:
        owner.save()
        assert owner.worker.shared_at is not None
        source = KVSource(worker_id="w", address=owner.worker.shared_at, num_blocks=3)
        sighting = Sighting(KEYS, 0, bytes(4 * (3 * SIZE + 1)), None, None, 0, True, True, source)
        report = reader.run(sightings=[sighting])
        loads, deadline_s = report.loads, monotonic() + TIMEOUT_S
        while len(loads) < 2:
            loads += reader.run().loads
            assert monotonic() < deadline_s
        assert [(load.tier, load.num_blocks) for load in loads] == [("shared", 1), ("shared", 3)]


def test_the_tiers_that_read_others_are_said_once():
    with process(plans=[RAM, SHARED]) as reader:
        assert reader.run().peer_tiers == [1]
        assert reader.run().peer_tiers == []
    with process(plans=[RAM]) as other:
        assert other.run().peer_tiers == []
        assert other.worker.shared_at is None, "who reads nobody is read by nobody"


@pytest.mark.parametrize(
    ("plans", "sharing", "because"),
    [
        ([RAM, SHARED], None, "a worker of dynamo_sdk must have started vLLM"),
        ([SHARED], SHARING, "put a tier such as ram before shared"),
    ],
)
def test_what_cannot_be_shared_is_refused(plans: list[KVTierPlan], sharing: KVSharing | None, because: str):
    with pytest.raises(ConfigError, match=because), process(plans=plans, sharing=sharing):
        pass


def test_what_is_said_in_the_folder_is_nobody_elses(tmp_path: Path):
    ask(tmp_path, SHARING)
    assert asked(tmp_path) == SHARING
    assert answered(tmp_path) is None
    for rank in (10, 2, 0):
        answer(tmp_path, rank, f"tcp:127.0.0.1:{rank}")
    assert answered(tmp_path) == "tcp:127.0.0.1:0,tcp:127.0.0.1:2,tcp:127.0.0.1:10", "by rank"
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    with pytest.raises(ConfigError, match="did not say where"):
        asked(tmp_path / "elsewhere")
