"""What an ``@endpoint`` takes and gives, read from its annotations.

Both sides of a call need the real types: the caller to encode arguments and decode results, the callee
the other way round. So each endpoint must be async and fully annotated; a breach is reported with file,
line and the rule before anything starts.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from dynamo_sdk.errors import GraphError

from .markers import is_endpoint

_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """One callable method of a service.

    ``parameters``: name -> type, without ``self``, in order. ``result``: the type of the answer, or of
    each item when ``is_streaming``. ``signature`` (without ``self``) binds a call's arguments.
    """

    name: str
    is_streaming: bool
    parameters: Mapping[str, Any]
    result: Any
    signature: inspect.Signature


def endpoints_of(cls: type) -> Mapping[str, EndpointSpec]:
    """Name -> spec of every endpoint of ``cls``, bases first. Raises ``GraphError``.

    A method that overrides an endpoint is one, marked or not.
    """
    names = {
        name: None
        for base in reversed(cls.__mro__)
        for name, value in vars(base).items()
        if is_endpoint(getattr(value, "__func__", value))
    }
    return MappingProxyType({name: _read_endpoint(cls, name, getattr(cls, name)) for name in names})


def _read_endpoint(cls: type, name: str, function: Callable[..., Any]) -> EndpointSpec:
    if isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        raise _refusal(cls, name, function, "an endpoint is a method of the instance, with `self`")
    is_streaming = inspect.isasyncgenfunction(function)
    if not is_streaming and not inspect.iscoroutinefunction(function):
        raise _refusal(cls, name, function, "an endpoint is `async def` (with `yield` to stream)")
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[1:]
    for parameter in own:
        if parameter.kind not in _NAMED:
            raise _refusal(
                cls, name, function, f"its parameters are named one by one, which {parameter} is not"
            )
    hints = _hints(cls, name, function)
    if bare := [parameter.name for parameter in own if parameter.name not in hints]:
        raise _refusal(cls, name, function, f"every parameter has a type, {', '.join(bare)} has none")
    if "return" not in hints:
        raise _refusal(cls, name, function, "the result has a type, e.g. `-> str` or `-> AsyncIterator[str]`")
    return EndpointSpec(
        name=name,
        is_streaming=is_streaming,
        parameters=MappingProxyType({parameter.name: hints[parameter.name] for parameter in own}),
        result=_result(cls, name, function, hints["return"], is_streaming),
        signature=signature.replace(parameters=own),
    )


def _hints(cls: type, name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, localns={cls.__name__: cls}, include_extras=True)
    except Exception as error:
        rule = f"its annotations can be evaluated at run time ({error}); import them outside TYPE_CHECKING"
        raise _refusal(cls, name, function, rule) from error


def _result(cls: type, name: str, function: Callable[..., Any], hint: Any, is_streaming: bool) -> Any:
    is_stream_hint = get_origin(hint) in _STREAMS or hint in _STREAMS
    if not is_streaming:
        if is_stream_hint:
            raise _refusal(cls, name, function, "a method that returns AsyncIterator[...] yields its items")
        return hint
    if not is_stream_hint or not get_args(hint):
        raise _refusal(cls, name, function, "a method that yields is annotated `-> AsyncIterator[Item]`")
    return get_args(hint)[0]


def _refusal(cls: type, name: str, function: Callable[..., Any], rule: str) -> GraphError:
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return GraphError(f"endpoint {cls.__name__}.{name}{where} breaks a rule: {rule}")
