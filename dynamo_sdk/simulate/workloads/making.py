"""``Generator``: makes a workload; and from ``NAME,KEY=VALUE,...`` to one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.simulate.arrivals import Arrival, Workload

from .parts import Source

Count = Annotated[int, msgspec.Meta(ge=1)]
Mean = Annotated[float, msgspec.Meta(ge=1e-3)]
Rate = Annotated[float, msgspec.Meta(ge=1e-6)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

GENERATORS = {
    "shared-prompts": "single:SharedPrompts",
    "chats": "sessions:Chats",
    "agents": "sessions:Agents",
    "unique": "single:Unique",
}


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of workload with its sizes; a subclass names it in its tag."""

    def arrivals(self, source: Source) -> Iterator[Arrival]:
        """Requests in any order; those of one session in theirs."""
        raise NotImplementedError

    def make(self, *, seed: int, block_tokens: int) -> Workload:
        """The whole workload, its first request at 0; equal seeds give equal ones. Times are whole
        microseconds, so that a trace file holds them exactly."""
        found = list(self.arrivals(Source(seed, block_tokens)))
        timed = sorted([a for a in found if not a.is_relative], key=lambda arrival: arrival.at_s)
        first_s = timed[0].at_s
        timed = [replace(arrival, at_s=round(arrival.at_s - first_s, 6)) for arrival in timed]
        followers = [
            replace(arrival, at_s=round(arrival.at_s, 6)) for arrival in found if arrival.is_relative
        ]
        name = str(self.__struct_config__.tag)
        return Workload(name=name, arrivals=(*timed, *followers), block_tokens=block_tokens)


def parse_generator(text: str) -> Generator:
    """``chats,rate=2,turns=8``. Raises ``ConfigError`` that names what there is."""
    name, *pairs = [part.strip() for part in text.split(",")]
    if name not in GENERATORS:
        raise ConfigError(f"no workload {name!r} (workloads: {', '.join(GENERATORS)})")
    module, _, attribute = GENERATORS[name].partition(":")
    kind: type[Generator] = getattr(import_module(f"{__package__}.{module}"), attribute)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, is_given, value = pair.partition("=")
        if not is_given or key not in kind.__struct_fields__:
            fields = ", ".join(kind.__struct_fields__)
            raise ConfigError(f"workload {name}: {pair!r} is no KEY=VALUE of it (keys: {fields})")
        values[key] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"workload {name}: {error}") from error
