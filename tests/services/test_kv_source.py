"""From a decision to the request: the chosen worker is told where blocks can be read."""

from random import Random

import pytest

from dynamo_sdk.flow import FlowConfig, RequestFlow, Route, Send
from dynamo_sdk.interfaces import Overlap, Router, RoutingDecision
from dynamo_sdk.kv import prefix_keys
from dynamo_sdk.services.choosing import Chooser
from dynamo_sdk.types import (
    GenerateRequest,
    KVSource,
    Role,
    SamplingParams,
    WorkerId,
    pack_tokens,
)

from .fleet import Fleet

pytestmark = pytest.mark.anyio

PROMPT = pack_tokens(range(100))


class Chooses(Router):
    uses_overlap = True

    def __init__(self, worker_id):
        self.worker_id = WorkerId(worker_id)
        self.seen = {}

    def select(self, request, candidates, context):
        self.seen = {candidate.worker_id: candidate.overlap.remote_blocks for candidate in candidates}
        return RoutingDecision(worker_id=self.worker_id)


class Index:
    """``a`` has 20 blocks in host memory."""

    def __init__(self, book):
        self.book = book

    def match(self, keys):
        assert list(keys) == list(prefix_keys(PROMPT, 4))
        return {self.book.seats(WorkerId("a"))[0]: Overlap(host_blocks=20, readable_blocks=20)}

    def drop(self, seat):
        pass


def leg_of(fleet, router, **ask):
    flow = RequestFlow(
        GenerateRequest(request_id="r", model="m", prompt=PROMPT, sampling=SamplingParams(max_tokens=1)),
        FlowConfig(connector=None),
    )
    [route] = flow.start()
    route = Route(route.pool, route.num_tokens, **ask)
    actions = Chooser(fleet.pools, fleet.clock, Random(0)).choose(flow, "m", router, route)
    [send] = [action for action in actions if isinstance(action, Send)]
    return send.request


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_the_chosen_worker_learns_who_has_more():
    async with Fleet() as fleet:
        for name in "abc":
            address = None if name == "c" else f"unix:/{name}.tiers"
            await fleet.add(name, Role.AGGREGATED, block_size=4, kv_address=address)
        fleet.pools.book._index = Index(fleet.pools.book)

        router = Chooses("b")
        source = KVSource(worker_id="a", address="unix:/a.tiers", num_blocks=20)
        assert leg_of(fleet, router).kv_source == source
        assert router.seen == {"a": 0, "b": 20, "c": 0}
        assert leg_of(fleet, Chooses("a")).kv_source is None
        assert leg_of(fleet, Chooses("c")).kv_source is None, "it does not read from others"
        assert leg_of(fleet, router, excluded=frozenset({WorkerId("a")})).kv_source is None, (
            "it has just failed"
        )
