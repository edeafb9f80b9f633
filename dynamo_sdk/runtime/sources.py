"""Streaming endpoints that can also be answered from an ``ItemSource``.

The endpoint stays an async generator, for callers in the same process and for subclasses that change it;
a server takes the source where there is one::

    def open_leg(self, request: Request) -> ItemSource[Chunk] | None: ...

    @endpoint
    @sourced_by(open_leg)
    async def generate(self, request: Request) -> AsyncIterator[Chunk]: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dynamo_sdk.interfaces import ItemSource

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__dynamo_source__"


def sourced_by(opener: Callable[..., ItemSource[Any] | None]) -> Callable[[F], F]:
    """Mark an endpoint's method: ``opener``, called with the same arguments, gives the same items, or None
    when only the method can. The mark is the function's: a method that overrides it has none."""

    def mark(function: F) -> F:
        setattr(function, _MARK, opener)
        return function

    return mark


def open_source(method: Callable[..., Any], instance: object, /, **arguments: Any) -> ItemSource[Any] | None:
    """The source behind a call of ``method``; None = call the method. Raises what the call would."""
    opener = getattr(method, _MARK, None)
    return None if opener is None else opener(instance, **arguments)
