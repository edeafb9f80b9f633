"""``Graph``: the services of a deployment and the edges between them, as a value.

A graph names classes and, at most, three policies; where and how often the classes run is not its
business. Building one changes nothing: two graphs may share classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import ModuleType

from dynamo_sdk.errors import GraphError

from .local import DeploySource, LocalApp, run_locally
from .markers import dependencies_of, is_service


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceNode:
    """A service of a graph. ``edges``: attribute -> class, in the order of definition."""

    cls: type
    edges: dict[str, type]

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def factory(self) -> str:
        """The class's import string, ``module:qualname``."""
        return f"{self.cls.__module__}:{self.cls.__qualname__}"


@dataclass(frozen=True, slots=True, init=False)
class Graph:
    """Everything that can be reached from the roots through ``depends``.

    ``router``, ``planner`` and ``connector`` name plugins; the deploy file may choose others.
    Raises ``GraphError`` when a root is not a service.
    """

    roots: tuple[type, ...]
    router: str | None
    planner: str | None
    connector: str | None

    def __init__(
        self,
        root: type,
        *more_roots: type,
        router: str | None = None,
        planner: str | None = None,
        connector: str | None = None,
    ) -> None:
        roots = (root, *more_roots)
        for candidate in roots:
            _require_service(candidate, "Graph(...)")
        for name, value in (
            ("roots", roots),
            ("router", router),
            ("planner", planner),
            ("connector", connector),
        ):
            object.__setattr__(self, name, value)

    def services(self) -> tuple[ServiceNode, ...]:
        """Every service, in start order: after those it depends on, else in the order of definition.

        Raises ``GraphError`` for a cycle, an edge to something that is not a service, or two services
        of one name.
        """
        finished: dict[type, ServiceNode] = {}
        for root in self.roots:
            _visit(root, [], finished)
        by_name: dict[str, ServiceNode] = {}
        for node in finished.values():
            twin = by_name.setdefault(node.name, node)
            if twin is not node:
                raise GraphError(
                    f"two services are named {node.name!r}: {twin.factory} and {node.factory}; "
                    "a deploy file could not tell them apart: rename one class"
                )
        return tuple(finished.values())

    def service(self, name: str) -> type:
        """The class of the service of this name. Raises ``GraphError`` naming those there are."""
        nodes = self.services()
        for node in nodes:
            if node.name == name:
                return node.cls
        known = ", ".join(node.name for node in nodes)
        raise GraphError(f"the graph has no service {name!r} (services: {known})")

    def modules(self) -> tuple[ModuleType, ...]:
        """The modules of the roots. Functions in them that are marked with ``hookimpl`` count like those of
        an installed plugin, in this graph alone: a router of one's own needs no distribution."""
        return tuple(dict.fromkeys(sys.modules[root.__module__] for root in self.roots))

    def local(
        self, deploy: DeploySource | None = None, *, set: Sequence[str] = (), port: int = 0
    ) -> AbstractAsyncContextManager[LocalApp]:
        """Run the whole graph in this process: ``async with graph.local() as app:``.

        It is compiled, started and ready inside the block, and drained at its end. ``deploy`` is a path
        to a deploy file or what would stand in it, ``set`` are overrides such as
        ``"services.Decode.replicas=2"``, ``port`` 0 takes a free one. Raises ``DynamoError``.
        """
        return run_locally(self, deploy, set, port)


def _visit(cls: type, path: list[tuple[type, str]], finished: dict[type, ServiceNode]) -> None:
    """Depth first; ``path`` holds the classes being visited, each with the attribute that was followed."""
    if cls in finished:
        return
    edges: dict[str, type] = {}
    for attribute, dependency in dependencies_of(cls).items():
        here = f"{cls.__name__}.{attribute}"
        target = dependency.target
        _require_service(target, here)
        trail = [*path, (cls, attribute)]
        if target in [visited for visited, _ in trail]:
            start = [visited for visited, _ in trail].index(target)
            cycle = " -> ".join(f"{visited.__name__}.{name}" for visited, name in trail[start:])
            raise GraphError(
                f"the services depend on each other in a cycle, so none can start first: {cycle} -> "
                f"{target.__name__}; remove one of these edges, or move what both need to a third service"
            )
        _visit(target, trail, finished)
        edges[attribute] = target
    finished[cls] = ServiceNode(cls=cls, edges=edges)


def _require_service(candidate: object, place: str) -> None:
    if is_service(candidate):
        return
    if isinstance(candidate, type):
        factory = f"{candidate.__module__}:{candidate.__qualname__}"
        raise GraphError(f"{place}: {factory} is not a service; put @service above the class")
    raise GraphError(
        f"{place}: takes service classes, got {candidate!r}; put @service above a class and name it"
    )
