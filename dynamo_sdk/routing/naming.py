"""Routers inside routers: by the names that ours have, or by import string."""

from __future__ import annotations

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import Router

from .dynamo_kv import DynamoKvRouter
from .importing import imported
from .kv import KvRouter
from .policies import LeastLoadedRouter, PowerOfTwoRouter, RandomRouter, RoundRobinRouter

_OURS: dict[str, type[Router]] = {
    "dynamo-kv": DynamoKvRouter,
    "kv": KvRouter,
    "least-loaded": LeastLoadedRouter,
    "power-of-two": PowerOfTwoRouter,
    "random": RandomRouter,
    "round-robin": RoundRobinRouter,
}


def router_named(name: str) -> Router:
    """A new router with its default arguments. Raises ``ConfigError``."""
    if name in _OURS:
        return _OURS[name]()
    if ":" not in name:
        raise ConfigError(
            f"no router {name!r} to put inside another (there are {', '.join(_OURS)}; or module:Class)"
        )
    found = imported(name)
    if not callable(found):
        raise ConfigError(f"{name!r} is a {type(found).__name__}, not a Router's class")
    try:
        router = found()
    except Exception as error:  # whatever somebody's class does
        raise ConfigError(f"{name!r} cannot be made without arguments: {error}") from error
    if not isinstance(router, Router):
        raise ConfigError(f"{name!r} makes a {type(router).__name__}, not a Router")
    return router
