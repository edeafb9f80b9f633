"""Classes and methods that take exactly what the contract lists for one version."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from dynamo_sdk_trtllm.contract import UNKNOWN, Called, Contract, load_contract

load = load_contract


def is_in(since: str | None, version: str) -> bool:
    return since is None or tuple(map(int, since.split("."))) <= tuple(map(int, version.split(".")))


def signature_of(called: Called, version: str) -> inspect.Signature:
    """Parameters whose default the contract does not know get None."""
    listed = [(name, each) for name, each in called.parameters.items() if is_in(each.since, version)]
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty
            if each.is_required
            else (None if each.default is UNKNOWN else each.default),
        )
        for name, each in listed
    ]
    if called.takes_any:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def record_type(called: Called, version: str) -> type:
    """A class whose objects carry what they were made with."""
    signature = signature_of(called, version)

    def __init__(self: object, *args: object, **kwargs: object) -> None:  # noqa: N807
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        vars(self).update(bound.arguments)

    name = called.name.partition(":")[2]
    return type(name, (), {"__init__": __init__, "__signature__": signature})


def method(contract: Contract, name: str, version: str) -> Callable[[Callable[..., Any]], Any]:
    """Make ``function(self, arguments)`` the method that the contract calls ``name``."""
    called = next(each for each in contract.callables if each.name.endswith(f":{name}"))
    signature = signature_of(called, version)

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def checked(self: object, *args: object, **kwargs: object) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(self, SimpleNamespace(**bound.arguments))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        checked.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
        return checked

    return decorate
