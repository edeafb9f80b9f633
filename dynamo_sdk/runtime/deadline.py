"""The deadline of the call that the current task works for, so that calls it makes inherit it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline_s: ContextVar[float | None] = ContextVar("dynamo_sdk_deadline_s", default=None)


def current_deadline_s() -> float | None:
    """By the runtime's clock; None = no limit."""
    return _deadline_s.get()


def earliest_deadline_s(timeout_s: float | None, now_s: float) -> float | None:
    """The moment at which a call must end that may take ``timeout_s`` from now and is part of another."""
    limits_s = [None if timeout_s is None else now_s + timeout_s, current_deadline_s()]
    return min((limit_s for limit_s in limits_s if limit_s is not None), default=None)


@contextmanager
def deadline_scope(deadline_s: float | None) -> Iterator[None]:
    """Calls made inside must end by ``deadline_s``, or by an earlier outer deadline."""
    outer_s = _deadline_s.get()
    limits_s = [limit for limit in (deadline_s, outer_s) if limit is not None]
    token = _deadline_s.set(min(limits_s, default=None))
    try:
        yield
    finally:
        _deadline_s.reset(token)
