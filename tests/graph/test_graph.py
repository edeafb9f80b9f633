"""A graph is a value; walking it gives the start order or says why there is none."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.errors import GraphError
from dynamo_sdk.graph import ServiceNode


@service
class Leaf:
    pass


@service
class Middle:
    leaf = depends(Leaf)


@service
class Top:
    middle = depends(Middle)
    leaf = depends(Leaf)


@service
class Aside:
    pass


def _names(graph: Graph) -> list[str]:
    return [node.name for node in graph.services()]


def test_services_come_after_those_they_depend_on() -> None:
    assert _names(Graph(Top)) == ["Leaf", "Middle", "Top"]
    assert _names(Graph(Aside, Top, Leaf)) == ["Aside", "Leaf", "Middle", "Top"]


def test_nodes_know_their_edges_and_their_import_string() -> None:
    node = Graph(Top).services()[-1]
    assert node.edges == {"middle": Middle, "leaf": Leaf}
    assert node.factory == f"{__name__}:Top"


def test_graphs_are_values() -> None:
    assert Graph(Top, router="random") == Graph(Top, router="random")
    assert len({Graph(Top), Graph(Top), Graph(Top, planner="x")}) == 2
    with pytest.raises(AttributeError):
        Graph(Top).router = "random"  # type: ignore[misc]


def test_a_service_is_found_by_name() -> None:
    assert Graph(Top).service("Middle") is Middle
    with pytest.raises(GraphError, match=r"no service 'Midle'.*Leaf, Middle, Top"):
        Graph(Top).service("Midle")


def test_roots_must_be_services() -> None:
    class Unmarked:
        pass

    with pytest.raises(GraphError, match=r"Unmarked is not a service; put @service above"):
        Graph(Unmarked)
    with pytest.raises(GraphError, match="takes service classes, got"):
        Graph(Leaf())  # type: ignore[arg-type]


def test_an_edge_to_an_unmarked_class_is_named() -> None:
    class Unmarked:
        pass

    @service
    class Caller:
        helper = depends(Unmarked)

    with pytest.raises(GraphError, match=r"Caller.helper: .*Unmarked is not a service"):
        Graph(Caller).services()


def test_two_services_of_one_name_are_refused() -> None:
    first = Leaf
    second: type[object] = service(type("Leaf", (), {}))

    @service
    class Both:
        a = depends(first)
        b = depends(second)

    with pytest.raises(GraphError, match=r"two services are named 'Leaf'.*rename one class"):
        Graph(Both).services()


@service
class Ping:
    pong = depends(lambda: Pong)


@service
class Pong:
    ping = depends(Ping)


@service
class Narcissus:
    self_ = depends(lambda: Narcissus)


@service
class Outside:
    ping = depends(Ping)


def test_a_cycle_is_shown_edge_by_edge() -> None:
    with pytest.raises(GraphError, match=r"in a cycle.*: Ping.pong -> Pong.ping -> Ping;"):
        Graph(Outside).services()
    with pytest.raises(GraphError, match=r"Narcissus.self_ -> Narcissus;"):
        Graph(Narcissus).services()


@st.composite
def _wirings(draw: st.DrawFn) -> list[set[int]]:
    """Edges among n services, by number; cycles are welcome."""
    count = draw(st.integers(1, 7))
    return [draw(st.sets(st.integers(0, count - 1), max_size=3)) for _ in range(count)]


def _has_cycle(wiring: list[set[int]]) -> bool:
    """Kahn: what remains when nodes without remaining targets are taken away again and again."""
    left = set(range(len(wiring)))
    while free := {node for node in left if not wiring[node] & left}:
        left -= free
    return bool(left)


@given(_wirings())
def test_any_wiring_gives_a_start_order_or_a_cycle(wiring: list[set[int]]) -> None:
    classes: list[type] = []
    for index, targets in enumerate(wiring):
        edges: dict[str, object] = {
            f"edge{target}": depends(partial(classes.__getitem__, target)) for target in sorted(targets)
        }
        classes.append(service(type(f"S{index}", (), edges)))
    graph = Graph(*classes)
    if _has_cycle(wiring):
        with pytest.raises(GraphError, match="cycle"):
            graph.services()
        return
    nodes: tuple[ServiceNode, ...] = graph.services()
    assert {node.cls for node in nodes} == set(classes)
    started: set[type] = set()
    for node in nodes:
        assert set(node.edges.values()) <= started
        started.add(node.cls)
