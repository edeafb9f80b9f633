"""Marks only mark: classes stay what they are, and an unwired edge says how to wire it."""

from __future__ import annotations

import pytest

from dynamo_sdk import depends, endpoint, service
from dynamo_sdk.errors import GraphError
from dynamo_sdk.graph import Dependency, dependencies_of, is_endpoint, is_service


class Plain:
    def __init__(self, size: int = 3) -> None:
        self.size = size

    async def work(self) -> int:
        return self.size


def test_a_service_is_the_same_class() -> None:
    assert service(Plain) is Plain
    assert Plain(4).size == 4


def test_the_mark_is_not_inherited() -> None:
    @service
    class Base:
        pass

    class Child(Base):
        pass

    assert is_service(Base)
    assert not is_service(Child)
    assert not is_service(Base())


def test_service_refuses_what_is_no_class() -> None:
    with pytest.raises(GraphError, match="@service marks a class"):
        service(Plain.work)  # type: ignore[type-var]


def test_an_endpoint_is_the_same_function() -> None:
    work = Plain.work
    assert endpoint(work) is work
    assert is_endpoint(work)
    assert not is_endpoint(Plain.__init__)


class Caller:
    plain = depends(Plain)
    later = depends(lambda: Later)


class Later:
    pass


def test_the_class_holds_the_edge() -> None:
    edge = vars(Caller)["plain"]
    assert isinstance(edge, Dependency)
    assert edge.target is Plain
    assert edge.attribute == "plain"
    assert Caller.__dict__["later"].target is Later


def test_an_unwired_edge_says_how_to_wire_it() -> None:
    with pytest.raises(GraphError) as caught:
        _ = Caller().plain
    assert "Caller.plain is not wired" in caught.value.message
    assert "`caller.plain = FakePlain()`" in caught.value.message


def test_assignment_on_the_instance_wins() -> None:
    caller, other = Caller(), Caller()
    caller.plain = Plain(7)
    assert caller.plain.size == 7
    with pytest.raises(GraphError):
        _ = other.plain


def test_an_edge_can_be_unwired_again() -> None:
    caller = Caller()
    caller.plain = Plain()
    del caller.plain
    with pytest.raises(GraphError, match="not wired"):
        _ = caller.plain


def test_depends_refuses_what_is_no_class_at_once() -> None:
    with pytest.raises(GraphError, match="takes a service class"):
        depends("Plain")  # type: ignore[call-overload]


def test_a_forward_reference_that_fails_names_the_edge_and_the_reason() -> None:
    class Lost:
        gone = depends(lambda: NeverDefined)  # type: ignore[name-defined]  # noqa: F821
        wrong = depends(lambda: 3)  # type: ignore[arg-type, return-value, var-annotated]

    with pytest.raises(GraphError, match=r"'gone'.*NameError.*NeverDefined"):
        _ = dependencies_of(Lost)["gone"].target
    with pytest.raises(GraphError, match=r"'wrong': the function returned 3, not a class"):
        _ = dependencies_of(Lost)["wrong"].target


def test_edges_are_inherited_overridden_and_removed() -> None:
    class Base:
        first = depends(Plain)
        second = depends(Plain)
        third = depends(Plain)

    class Child(Base):
        fourth = depends(Later)
        second = depends(Later)  # type: ignore[assignment]
        third = None  # type: ignore[assignment]

    edges = {name: edge.target for name, edge in dependencies_of(Child).items()}
    assert edges == {"first": Plain, "second": Later, "fourth": Later}
    assert set(dependencies_of(Base)) == {"first", "second", "third"}
