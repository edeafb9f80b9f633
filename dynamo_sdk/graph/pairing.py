"""Which engine services serve a model together, and whether they can.

A model is served by aggregated workers, by prefill and decode workers that hand KV blocks over, or by
all of them. The two sides of a hand-over must speak one connector and cut the KV cache alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from dynamo_sdk.errors import GraphError
from dynamo_sdk.plugins import EngineDescriptor, Registry
from dynamo_sdk.types import Role

from .deploy import Problems
from .nearest import suggest
from .paths import Path

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One engine service: its part of the work, and on what."""

    service: str
    role: Role
    model: str
    engine: EngineDescriptor
    args: Mapping[str, JsonValue]

    @property
    def block_size(self) -> int | None:
        """Tokens per KV block as far as it is known before the engine runs."""
        if self.engine.block_size_arg is None:
            return self.engine.default_block_size
        value = self.args.get(self.engine.block_size_arg)
        return value if isinstance(value, int) else self.engine.default_block_size


def check_frontend(name: str, legs: Sequence[Leg]) -> None:
    """A frontend reaches an engine, and for each model no half of a pair. Raises ``GraphError``."""
    if not legs:
        raise GraphError(
            f"{name} is a frontend without an engine: it depends on no worker service; "
            f"add an edge to its class, e.g. `worker = depends(Worker)`"
        )
    for model in dict.fromkeys(leg.model for leg in legs):
        roles = {leg.role for leg in legs if leg.model == model}
        for present, absent in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
            if present in roles and absent not in roles:
                have = ", ".join(leg.service for leg in legs if leg.model == model and leg.role is present)
                raise GraphError(
                    f"{name} has {present} workers for model {model!r} ({have}) but no {absent} workers; "
                    f"add a {absent} service and `{absent} = depends(...)` to {name}, or use one Worker"
                )


def choose_connector(
    wanted: str, legs: Sequence[Leg], registry: Registry, path: Path, problems: Problems
) -> str | None:
    """The connector between the prefill and the decode legs of one model; None when nothing is handed
    over or nothing fits (then ``problems`` says why)."""
    pair = [leg for leg in legs if leg.role is not Role.AGGREGATED]
    if not pair:
        return None
    spoken = {f"{leg.service} ({leg.engine.name})": leg.engine.connectors for leg in pair}
    shown = "; ".join(f"{leg} speaks {', '.join(names) or 'none'}" for leg, names in spoken.items())
    common = [name for name in pair[0].engine.connectors if all(name in names for names in spoken.values())]
    if wanted != AUTO:
        if wanted not in registry.kv_connectors:
            hint = suggest(wanted, [AUTO, *registry.kv_connectors], noun="installed")
            problems.add(path, f"no connector {wanted!r}{hint}")
        elif wanted not in common:
            either = f"name one of: {', '.join([AUTO, *common])}" if common else "choose other engines"
            problems.add(path, f"not every side speaks {wanted!r}: {shown}; {either}")
        else:
            return wanted
        return None
    for name in common:
        if name in registry.kv_connectors:
            return name
    if common:
        problems.add(path, f"the engines agree on {', '.join(common)}, which no installed plugin offers")
    else:
        problems.add(path, f"the engines have no connector in common: {shown}; choose other engines")
    return None


def check_block_sizes(model: str, legs: Sequence[Leg], problems: Problems, *, recuts_blocks: bool) -> None:
    """All that hand over blocks of one model cut the prompt alike. ``recuts_blocks``: between prefill and
    decode the connector makes do with multiples."""
    known = [(leg, size) for leg in legs if leg.role is not Role.AGGREGATED and (size := leg.block_size)]
    sizes = {size for _, size in known}
    if len(sizes) <= 1:
        return
    advice = f"give all of them one, e.g. {known[0][1]}"
    if recuts_blocks:
        has_one_per_role = len({(leg.role, size) for leg, size in known}) == len(
            {leg.role for leg, _ in known}
        )
        if has_one_per_role and max(sizes) % min(sizes) == 0:
            return
        advice = "give each role one, of which the larger is a multiple of the smaller"
    shown = ", ".join(f"{leg.service} {size}" for leg, size in known)
    leg, _ = known[-1]
    path: Path = ("services", leg.service, "args", leg.engine.block_size_arg or "block_size")
    problems.add(
        path, f"model {model!r} is handed over between different block sizes ({shown} tokens); {advice}"
    )
