"""Arguments of engines, routers and planners against what the plugin says it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast

import msgspec
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from dynamo_sdk.plugins import Descriptor, Registry
from dynamo_sdk.types.plan import Json

from .deploy import Problems, describe_validation_error
from .nearest import suggest
from .paths import Path


def check_plugin_args(
    registry: Registry, descriptor: Descriptor, args: Mapping[str, JsonValue], path: Path, problems: Problems
) -> dict[str, Json]:
    """Validate ``args`` and return the plugin's defaults, by name, as JSON.

    Raises ``PluginError`` when the plugin's config model cannot be imported.
    """
    model = registry.load_config(descriptor)
    if model is None:
        if args:
            problems.add(path, f"{descriptor.kind} {descriptor.name!r} takes no arguments; remove them")
        return {}
    try:
        model.model_validate(dict(args))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            loc = details["loc"]
            if details["type"] == "extra_forbidden" and len(loc) == 1:
                message = f"unknown argument{suggest(str(loc[0]), _names(model))}"
            elif details["type"] == "missing":
                message = f"is missing; {descriptor.kind} {descriptor.name!r} needs it"
            else:
                message = describe_validation_error(details)
            problems.add((*path, *loc), message)
    return _defaults(model)


def check_constructor_args(cls: type, args: Mapping[str, JsonValue], path: Path, problems: Problems) -> None:
    """Arguments of a service without an engine go to its constructor; check their names."""
    try:
        parameters = inspect.signature(cast(Callable[..., object], cls)).parameters.values()
    except (TypeError, ValueError):  # a constructor in C without a signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    for name in args:
        if name not in names:
            problems.add((*path, name), f"{cls.__name__} takes no such argument{suggest(name, names)}")


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _defaults(model: type[BaseModel]) -> dict[str, Json]:
    defaults: dict[str, Json] = {}
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=False)
        if value is not None and value is not PydanticUndefined:
            # through msgspec, so that a number that JSON cannot say does not end up in a plan
            encoded = msgspec.json.encode(to_jsonable_python(value, fallback=str))
            defaults[field.alias or name] = msgspec.json.decode(encoded)
    return defaults
