"""``@service``, ``@endpoint``, ``depends``: marks on ordinary classes.

A mark is an attribute and nothing else: a marked class stays the same class, is constructed and tested
like any other, and nothing global changes when it is defined. What the marks mean is decided later, by
whoever reads them (``Graph``, the compiler, a worker process).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

from dynamo_sdk.errors import GraphError
from dynamo_sdk.types.requests import Role

S = TypeVar("S")
C = TypeVar("C", bound=type)
E = TypeVar("E", bound=Callable[..., Awaitable[Any] | AsyncIterator[Any]])

_SERVICE_MARK = "__dynamo_service__"
_ENDPOINT_MARK = "__dynamo_endpoint__"


class EngineService:
    """Base of services that run an engine. ``role``: the part of a generation their replicas play."""

    role: ClassVar[Role] = Role.AGGREGATED


class FrontendService:
    """Base of services that clients talk to; their legs are the engine services they depend on."""


def service(cls: C) -> C:
    """Mark a class as a service: a part of a graph that runs in processes of its own.

    The mark is not inherited; a subclass is a service of its own only with a mark of its own. The
    service's name, in plans and deploy files, is the class's ``__name__``.
    """
    if not isinstance(cast(object, cls), type):
        raise GraphError(f"@service marks a class, got {cls!r}; methods are marked with @endpoint")
    setattr(cls, _SERVICE_MARK, True)
    return cls


def is_service(cls: object) -> bool:
    """Whether this very class (not only a base of it) is marked with ``@service``."""
    return isinstance(cls, type) and _SERVICE_MARK in vars(cls)


def endpoint(function: E) -> E:
    """Mark an async method, or an async generator method, as callable by other services.

    Parameters and result need annotations of types that msgspec can encode; they are checked when the
    graph is compiled (see ``endpoints_of``).
    """
    setattr(function, _ENDPOINT_MARK, True)
    return function


def is_endpoint(function: object) -> bool:
    """Whether ``function`` is marked with ``@endpoint``."""
    return getattr(function, _ENDPOINT_MARK, False) is True


@overload
def depends(target: type[S]) -> S: ...
@overload
def depends(target: Callable[[], type[S]]) -> S: ...
def depends(target: type[S] | Callable[[], type[S]]) -> S:
    """Declare that this class calls ``target``, as a class attribute: ``prefill = depends(Prefill)``.

    Type checkers see an instance of ``target``. In a running graph the attribute is a client with the
    same endpoints; in a unit test assign whatever answers like it. A class that is defined further down
    is named by a function: ``depends(lambda: Decode)``.
    """
    return cast(S, Dependency(target))


class Dependency(Generic[S]):
    """What ``depends`` puts into the class: a non-data descriptor, so that the instance's own attribute
    wins as soon as somebody assigns it."""

    __slots__ = ("_target", "attribute")

    def __init__(self, target: type[S] | Callable[[], type[S]]) -> None:
        if not callable(target):
            raise GraphError(
                f"depends() takes a service class, or a function that returns one; got {target!r}; "
                "write e.g. `prefill = depends(Prefill)`"
            )
        self._target = target
        self.attribute = "?"

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    @property
    def target(self) -> type[S]:
        """The class this edge leads to. Raises ``GraphError`` when a forward reference fails."""
        if isinstance(self._target, type):
            return cast("type[S]", self._target)
        try:
            target = cast(object, self._target())
        except Exception as error:
            raise GraphError(
                f"depends() of {self.attribute!r}: the function that should return its class raised "
                f"{type(error).__name__}: {error}; define the class at module level"
            ) from error
        if not isinstance(target, type):
            raise GraphError(
                f"depends() of {self.attribute!r}: the function returned {target!r}, not a class; "
                "write e.g. `depends(lambda: Decode)`"
            )
        return cast("type[S]", target)

    @overload
    def __get__(self, instance: None, owner: type) -> Dependency[S]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> S: ...
    def __get__(self, instance: object | None, owner: type) -> Dependency[S] | S:
        if instance is None:
            return self
        name, target = self.attribute, self.target.__name__
        raise GraphError(
            f"{owner.__name__}.{name} is not wired: it is a {target} only inside a running graph; "
            f"in a unit test assign one first, e.g. `{owner.__name__.lower()}.{name} = Fake{target}()`"
        )

    def __repr__(self) -> str:
        shown = self._target.__name__ if isinstance(self._target, type) else "<forward reference>"
        return f"depends({shown})"


def dependencies_of(cls: type) -> dict[str, Dependency[object]]:
    """Attribute -> edge, bases first, in the order of definition; what a subclass overrides is gone."""
    found: dict[str, Dependency[object]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            found.pop(name, None)
            if isinstance(value, Dependency):
                found[name] = value
    return found
