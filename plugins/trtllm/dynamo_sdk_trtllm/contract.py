"""What of TensorRT-LLM this adapter relies on, and whether an installed version keeps it.

``contract.json`` lists names, parameters and defaults, since which version they are there, and where each was
read. It was written by hand: the package cannot be installed where this adapter was made. So it also
lists beliefs, which no signature shows::

    python -m dynamo_sdk_trtllm.contract     # where TensorRT-LLM is installed

Exit codes: 0 kept, 1 broken, 2 nothing could be checked.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import msgspec

UNKNOWN = object()


class Parameter(msgspec.Struct, frozen=True):
    """``default``: JSON; ``UNKNOWN`` where it was not read. ``since``: absent from older versions."""

    is_required: bool = False
    is_used: bool = False
    since: str | None = None
    default: Any = msgspec.field(default_factory=lambda: UNKNOWN)


class Called(msgspec.Struct, frozen=True):
    """A function, method or class that we call. ``name``: ``module:qualified.name``."""

    name: str
    sources: tuple[str, ...]
    parameters: dict[str, Parameter]
    takes_any: bool = False
    since: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A class of which we are given objects, and what we read of them."""

    name: str
    sources: tuple[str, ...]
    attributes: tuple[str, ...]


class Contract(msgspec.Struct, frozen=True):
    package: str
    versions: tuple[str, ...]
    sources: dict[str, str]
    callables: tuple[Called, ...]
    records: tuple[Record, ...]
    beliefs: tuple[str, ...]


@dataclass(slots=True)
class Findings:
    """``broken``: the adapter will fail. ``differs``: it should not matter. ``open_questions``: cannot be
    seen from outside. The counts say what was looked at."""

    version: str
    broken: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    open_questions: list[str] = field(default_factory=list)
    num_names: int = 0
    num_parameters: int = 0
    num_defaults: int = 0
    num_attributes: int = 0


def load_contract() -> Contract:
    return msgspec.json.decode(files(__package__).joinpath("contract.json").read_bytes(), type=Contract)


def verify(contract: Contract, load: Callable[[str], Any] = importlib.import_module) -> Findings:
    """Compare with what ``load`` imports. Raises ``ImportError`` where there is no package at all."""
    version = str(getattr(load(contract.package), "__version__", "unknown"))
    findings = Findings(version)
    for called in contract.callables:
        _verify_call(called, load, findings)
    for record in contract.records:
        _verify_record(record, load, findings)
    return findings


def report(contract: Contract, findings: Findings) -> str:
    """What was checked, what is wrong, and what this check cannot know."""
    lines = [
        f"{contract.package} {findings.version} against the contract for {' to '.join(contract.versions)}: "
        f"{'broken' if findings.broken else 'kept'}",
        f"checked {findings.num_names} names, {findings.num_parameters} parameters, "
        f"{findings.num_defaults} defaults, {findings.num_attributes} attributes",
    ]
    lines += [f"  broken: {what}" for what in findings.broken]
    lines += [f"  differs: {what}" for what in findings.differs]
    lines += [f"  not seen: {what}" for what in findings.open_questions]
    lines.append("not checked, because only a running engine shows it:")
    lines += [f"  {belief}" for belief in contract.beliefs]
    return "\n".join(lines)


def _verify_call(called: Called, load: Callable[[str], Any], findings: Findings) -> None:
    target = _find(called.name, load)
    if target is None:
        what = f"there is no {called.name}"
        (findings.broken if called.since is None else findings.differs).append(what)
        return
    findings.num_names += 1
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        findings.open_questions.append(f"the signature of {called.name}")
        return
    parameters.pop("self", None)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, expected in called.parameters.items():
        findings.num_parameters += 1
        if name not in parameters:
            if not takes_any:
                is_needed = expected.is_used and expected.since is None
                (findings.broken if is_needed else findings.differs).append(f"{called.name} has no {name}")
        elif expected.default is not UNKNOWN:
            findings.num_defaults += 1
            found = parameters[name].default
            if found != expected.default:
                findings.differs.append(f"{called.name}: {name} is {found!r}, not {expected.default!r}")
    for name, parameter in parameters.items():
        is_given = name in called.parameters and called.parameters[name].is_used
        if parameter.default is parameter.empty and not is_given and parameter.kind not in _VARIADIC:
            findings.broken.append(f"{called.name} requires {name}, which is not given")


def _verify_record(record: Record, load: Callable[[str], Any], findings: Findings) -> None:
    target = _find(record.name, load)
    if target is None:
        findings.open_questions.append(f"{record.name}: it is not where it was")
        return
    findings.num_names += 1
    known = set(_attributes(target))
    for name in record.attributes:
        if name in known:
            findings.num_attributes += 1
        else:
            findings.open_questions.append(f"{record.name} has {name}, if objects set it when they are made")


def _attributes(target: type) -> Iterator[str]:
    yield from dir(target)
    for base in target.__mro__:
        yield from getattr(base, "__annotations__", {})
    if dataclasses.is_dataclass(target):
        yield from (each.name for each in dataclasses.fields(target))


def _find(name: str, load: Callable[[str], Any]) -> Any:
    module, _, path = name.partition(":")
    try:
        found = load(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def main() -> int:
    contract = load_contract()
    try:
        findings = verify(contract)
    except ImportError as error:
        print(f"nothing was checked: {contract.package} cannot be imported here ({error})")  # noqa: T201
        return 2
    print(report(contract, findings))  # noqa: T201
    return 1 if findings.broken else 0


if __name__ == "__main__":
    sys.exit(main())
