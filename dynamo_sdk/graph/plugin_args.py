"""Arguments of engines, routers and planners against what the plugin says it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast, get_type_hints

import msgspec
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from dynamo_sdk.plugins import Descriptor, Registry
from dynamo_sdk.types.plan import Json

from .deploy import Problems, describe_validation_error
from .nearest import suggest
from .paths import Path


def check_plugin_args(
    registry: Registry,
    descriptor: Descriptor,
    args: Mapping[str, JsonValue],
    path: Sequence[str | int],
    problems: Problems,
    *,
    known: Collection[str] | None = None,
) -> dict[str, Json]:
    """Validate ``args`` and return the plugin's defaults, by name, as JSON. ``known``: what the user may
    write there; None = the arguments of the plugin.

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
        owner = f"{descriptor.kind} {descriptor.name!r}"
        for loc, message in wrong_args(error, model, owner, known=known):
            problems.add((*path, *loc), message)
    return _defaults(model)


def wrong_args(
    error: ValidationError, model: type[BaseModel], owner: str, *, known: Collection[str] | None = None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each argument that ``model`` refused, and in our words why. ``owner``: whose arguments they are;
    ``known``: what may be written, the model's own fields unless said."""
    names = argument_names(model) if known is None else known
    for details in error.errors(include_url=False):
        loc = details["loc"]
        if details["type"] == "extra_forbidden" and len(loc) == 1:
            yield (
                loc,
                f"unknown argument{suggest(str(loc[0]), names)}",
            )
        elif details["type"] == "missing":
            yield loc, f"is missing; {owner} needs it"
        else:
            yield loc, describe_validation_error(details)


def check_constructor_args(
    cls: type, args: Mapping[str, JsonValue], path: Path, problems: Problems
) -> dict[str, Json]:
    """Arguments of a service without an engine go to its constructor: check names and simple types.

    Returns the constructor's own defaults, by name, as far as they are JSON.
    """
    try:
        parameters = inspect.signature(cast(Callable[..., object], cls)).parameters.values()
    except (TypeError, ValueError):  # a constructor in C without a signature
        return {}
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    hints = _constructor_hints(cls)
    for name, value in args.items():
        if name not in named and not takes_any:
            problems.add((*path, name), f"{cls.__name__} takes no such argument{suggest(name, named)}")
        elif wrong := _mismatch(value, hints.get(name, object)):
            problems.add((*path, name), wrong)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in args:
            problems.add((*path, name), f"is missing; {cls.__name__} needs it")
    return {
        name: parameter.default
        for name, parameter in named.items()
        if isinstance(parameter.default, bool | int | float | str)
    }


def _constructor_hints(cls: type) -> dict[str, object]:
    try:
        return get_type_hints(inspect.getattr_static(cls, "__init__"))
    except Exception:  # annotations that only type checkers can see
        return {}


def _mismatch(value: JsonValue, hint: object) -> str | None:
    """Why ``value`` is none of ``hint``; None where it is one, or where nobody can say."""
    if hint is object:
        return None
    try:
        msgspec.convert(value, cast(type, hint))
    except msgspec.ValidationError as error:
        reason = str(error)
        return reason[:1].lower() + reason[1:]
    except TypeError:  # a type of the service's own
        return None
    return None


def argument_names(model: type[BaseModel]) -> list[str]:
    """As they are written."""
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
