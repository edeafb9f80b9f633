"""Arguments that an adapter passes on to an engine of its own project, as users have written them.

Versions of such an engine differ in what they take: what users write must be known to the one that is
installed, what the adapter wants on top is dropped where it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from dynamo_sdk.errors import ConfigError


class ForeignArguments(BaseModel):
    """Base of such an adapter's configuration: fields are its own arguments, all others the engine's.

    ``owned``: arguments of the engine that are not the user's to set, and why.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    owned: ClassVar[Mapping[str, str]] = {}

    @property
    def written(self) -> dict[str, Any]:
        """What is the engine's."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _leaves_ours_alone(cls, values: object) -> object:
        if isinstance(values, dict):
            for name, why in cls.owned.items():
                if name in values:
                    raise ValueError(f"{name} cannot be set here: {why}")
        return values


def known_names(target: Callable[..., object]) -> frozenset[str] | None:
    """The keyword arguments of ``target``; None = it takes any."""
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return frozenset(parameters)


def accepted(target: Callable[..., object], wanted: Mapping[str, object]) -> dict[str, Any]:
    """Those of ``wanted`` that ``target`` takes."""
    known = known_names(target)
    return {name: value for name, value in wanted.items() if known is None or name in known}


def require_known(
    target: Callable[..., object], names: Iterable[str], *, engine: str, path: str = "args"
) -> None:
    """Raises ``ConfigError`` for the first of the user's ``names`` that ``target`` does not take. ``engine``:
    what people call it; ``path``: where the names were written."""
    known = known_names(target)
    for name in names:
        if known is not None and name not in known:
            close = get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{path}.{name}: {engine} has no such argument{hint}", param=f"{path}.{name}")
