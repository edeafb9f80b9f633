"""What endpoints take and give, and the rules that a breach names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from dynamo_sdk import endpoint
from dynamo_sdk.errors import GraphError
from dynamo_sdk.graph import endpoints_of

if TYPE_CHECKING:
    from decimal import Decimal


class Point(msgspec.Struct):
    x: int


class Good:
    @endpoint
    async def move(self, point: Point, *, by: int = 1) -> list[Point]:
        return [Point(x=point.x + by)]

    @endpoint
    async def trail(self, point: Annotated[Point, "where"]) -> AsyncIterator[Point]:
        yield point

    @endpoint
    async def trail_too(self) -> AsyncGenerator[int, None]:
        yield 1

    @endpoint
    async def nothing(self) -> None: ...

    async def not_marked(self, anything):  # type: ignore[no-untyped-def]
        return anything


def test_types_are_resolved() -> None:
    specs = endpoints_of(Good)
    assert list(specs) == ["move", "trail", "trail_too", "nothing"]
    assert dict(specs["move"].parameters) == {"point": Point, "by": int}
    assert specs["move"].result == list[Point]
    assert not specs["move"].is_streaming
    assert specs["nothing"].result is type(None)


def test_streams_give_the_type_of_their_items() -> None:
    specs = endpoints_of(Good)
    assert specs["trail"].is_streaming
    assert specs["trail"].result is Point
    assert specs["trail_too"].result is int


def test_annotations_keep_their_extras() -> None:
    assert endpoints_of(Good)["trail"].parameters["point"] == Annotated[Point, "where"]


def test_the_signature_binds_without_self() -> None:
    bound = endpoints_of(Good)["move"].signature.bind(Point(x=1), by=2)
    assert bound.arguments == {"point": Point(x=1), "by": 2}


def test_an_override_stays_an_endpoint_with_its_own_types() -> None:
    class Better(Good):
        async def move(self, point: Point, *, by: int = 1, times: int = 1) -> list[Point]:
            return []

    assert list(endpoints_of(Better)["move"].parameters) == ["point", "by", "times"]


def test_a_class_can_name_itself() -> None:
    class Tree:
        @endpoint
        async def ping(self, depth: int) -> Tree | None:
            return None

    assert endpoints_of(Tree)["ping"].result == Tree | None


async def _fine(self: object) -> int:
    return 0


async def _no_parameter_type(self: object, x) -> int:  # type: ignore[no-untyped-def]
    return 0


async def _no_result_type(self: object):  # type: ignore[no-untyped-def]
    return 0


def _not_async(self: object) -> int:
    return 0


async def _rest(self: object, *rest: int) -> int:
    return 0


async def _keywords(self: object, **rest: int) -> int:
    return 0


async def _positional(self: object, x: int, /) -> int:
    return 0


async def _returns_stream(self: object) -> AsyncIterator[int]:
    raise NotImplementedError


async def _yields_wrong(self: object) -> int:  # type: ignore[misc]
    yield 1


async def _yields_bare(self: object) -> AsyncIterator:  # type: ignore[type-arg]
    yield 1


async def _unknown_type(self: object, x: Decimal) -> int:
    return 0


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (_no_parameter_type, "every parameter has a type, x has none"),
        (_no_result_type, "the result has a type"),
        (_not_async, "an endpoint is `async def`"),
        (_rest, r"which \*rest: 'int' is not"),
        (_keywords, r"which \*\*rest: 'int' is not"),
        (_positional, "its parameters are named one by one"),
        (_returns_stream, r"returns AsyncIterator\[...\] yields its items"),
        (_yields_wrong, "a method that yields is annotated"),
        (_yields_bare, "a method that yields is annotated"),
        (_unknown_type, "'Decimal' is not defined.*import them outside TYPE_CHECKING"),
    ],
)
def test_a_breach_names_the_place_and_the_rule(function: Callable[..., Any], rule: str) -> None:
    bad = type("Bad", (), {"call": endpoint(function)})
    with pytest.raises(GraphError, match=rule) as caught:
        endpoints_of(bad)
    line = function.__code__.co_firstlineno
    assert f"endpoint Bad.call ({__file__}:{line}) breaks a rule" in caught.value.message


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_an_endpoint_has_an_instance(wrap: Callable[..., Any]) -> None:
    bad = type("Bad", (), {"call": wrap(endpoint(_fine))})
    with pytest.raises(GraphError, match="is a method of the instance"):
        endpoints_of(bad)


def test_an_override_that_is_no_method_is_refused() -> None:
    class Broken(Good):
        move = 3  # type: ignore[assignment]

    with pytest.raises(GraphError, match=r"endpoint Broken\.move"):
        endpoints_of(Broken)
