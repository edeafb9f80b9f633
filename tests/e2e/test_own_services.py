"""Services without an engine: typed endpoints, unary and streaming, across a running graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
import pydantic
import pytest

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.errors import DynamoError, InvalidRequest

from .serving import serve

pytestmark = pytest.mark.anyio


class Order(pydantic.BaseModel):
    item: str
    amount: int = pydantic.Field(ge=1)


class Line(msgspec.Struct, frozen=True):
    text: str
    price: float


@service
class Prices:
    def __init__(self, *, factor: float = 1.0) -> None:
        self.factor = factor
        self.num_open = 0

    @endpoint
    async def price(self, order: Order) -> float:
        if order.item == "nothing":
            raise InvalidRequest("nothing has no price", param="item")
        return len(order.item) * order.amount * self.factor

    @endpoint
    async def count(self, start: int, step: int = 1) -> AsyncIterator[int]:
        self.num_open += 1
        try:
            while True:
                yield start
                start += step
                await asyncio.sleep(0)
        finally:
            self.num_open -= 1

    @endpoint
    async def open_streams(self) -> int:
        return self.num_open


@service
class Bills:
    prices = depends(Prices)

    @endpoint
    async def bill(self, orders: list[Order]) -> dict[str, Line]:
        return {
            order.item: Line(text=f"{order.amount} {order.item}", price=await self.prices.price(order))
            for order in orders
        }

    @endpoint
    async def numbered(self, orders: list[Order]) -> AsyncIterator[tuple[int, Line]]:
        async with aclosing(self.prices.count(1)) as numbers:  # type: ignore[type-var]
            for order in orders:
                yield await anext(numbers), Line(order.item, await self.prices.price(order))


graph = Graph(Bills)

ORDERS = [Order(item="block", amount=2), Order(item="token", amount=16)]


async def test_types_survive_every_hop() -> None:
    async with graph.local() as app:
        bills = app.client(Bills)
        assert await bills.bill(ORDERS) == {"block": Line("2 block", 10), "token": Line("16 token", 80)}
        assert [line async for line in bills.numbered(ORDERS)] == [
            (1, Line("block", 10)),
            (2, Line("token", 80)),
        ]
        assert await app.client(Prices).price(order=ORDERS[0]) == 10


async def test_arguments_of_the_deploy_file_reach_every_replica() -> None:
    deploy = {"services": {"Prices": {"replicas": 3, "args": {"factor": 0.5}}}}
    async with graph.local(deploy) as app:
        assert [await app.client(Prices).price(ORDERS[0]) for _ in range(6)] == [5.0] * 6


async def test_a_stream_that_is_left_is_closed_over_there() -> None:
    async with graph.local() as app:
        prices = app.client(Prices)
        async with aclosing(prices.count(5, step=5)) as numbers:  # type: ignore[type-var]
            assert [await anext(numbers), await anext(numbers)] == [5, 10]
            assert await prices.open_streams() == 1
        async with asyncio.timeout(10):
            while await prices.open_streams():
                pass
        [line async for line in app.client(Bills).numbered(ORDERS)]
        async with asyncio.timeout(10):
            while await prices.open_streams():
                pass


async def test_errors_cross_with_their_kind_and_words() -> None:
    async with graph.local() as app:
        with pytest.raises(InvalidRequest, match="nothing has no price") as caught:
            await app.client(Bills).bill([Order(item="nothing", amount=1)])
        assert caught.value.param == "item"
        with pytest.raises(DynamoError, match="amount"):
            await app.client(Prices).price(Order.model_construct(item="block", amount=0))
        with pytest.raises(AttributeError, match="endpoints: price, count, open_streams"):
            app.client(Prices).prize  # type: ignore[attr-defined]  # noqa: B018


def test_processes_of_a_graph_without_a_frontend_turn_ready() -> None:
    with serve(f"{__name__}:graph", "--set", "services.Prices.replicas=2") as served:
        assert served.url == ""
        assert len(served.graph.tree()) == 6  # three replicas, a guardian each
