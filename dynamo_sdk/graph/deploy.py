"""The deploy file: how often, where and with what the services of a graph run.

Text in, values out; whoever has the file reads it. ``--set`` changes the document before it is
validated, so both kinds of input obey the same rules, and each value keeps its origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dynamo_sdk.errors import ConfigError, UserError
from dynamo_sdk.types import BackEndChoice
from dynamo_sdk.types.plan import Json, Origin

from .nearest import suggest
from .paths import Path, format_path, leaves, parse_path
from .sizes import parse_size
from .yaml_text import read_yaml

_MODEL_HINT = "; name the model's folder or Hugging Face id, or `demo`, the model that is served without any"
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PolicySection(Section):
    """A router or a planner. ``router: kv`` is short for ``router: {name: kv}``."""

    name: Name | None = None
    args: dict[str, JsonValue] = {}


class TierSection(BaseModel):
    """One cache tier below the device. ``kind``: a KV store; other keys than these are its own arguments.
    ``min_uses``, ``min_priority``: what is written to it, see ``KVTierPlan``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, JsonValue]

    kind: Name
    capacity: Annotated[int, BeforeValidator(parse_size)] | None = None
    min_uses: Annotated[int, Field(ge=0, le=255)] | None = None
    min_priority: int | None = None


class TransferSection(Section):
    """How blocks travel where engines expose them, see ``TransferSettings``."""

    back_end: BackEndChoice | None = None
    verify: bool | None = None
    connections: Annotated[int, Field(ge=1, le=16)] | None = None


class KVSection(Section):
    """``connector``: a plugin's name, or ``auto`` for the first that both engines speak. ``tiers``: where
    each worker keeps blocks beyond its device, the fastest first; each as it was written, since its keys are
    ours and its store's and are checked together, see ``check_tier``."""

    connector: Name | None = None
    tiers: list[dict[str, JsonValue]] | None = None
    transfer: TransferSection = TransferSection()


class ModelEntry(Section):
    """A model under ``models``. ``router`` and ``kv`` replace the graph-wide ones for this model; ``loras``
    are the folders of its LoRA adapters, by the names that clients say."""

    path: Name
    router: PolicySection | None = None
    kv: KVSection = KVSection()
    loras: dict[Name, Name] = {}


class ModelSection(ModelEntry):
    """``model``, for graphs that serve one. ``model: demo`` is short for ``model: {path: demo}``."""

    name: Name | None = None


class ServiceSection(Section):
    """One service. ``python``: the interpreter of another environment; ``args``: the engine's own."""

    engine: Name | None = None
    replicas: Annotated[int, Field(ge=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    cpus: Annotated[int, Field(ge=1)] | None = None
    python: Name | None = None
    model: Name | None = None
    args: dict[str, JsonValue] = {}


class DeployFile(Section):
    """The whole file; every key is optional."""

    model: ModelSection | None = None
    models: dict[str, ModelEntry] = {}
    router: PolicySection = PolicySection()
    planner: PolicySection = PolicySection()
    kv: KVSection = KVSection()
    services: dict[str, ServiceSection] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """A validated deploy file with its overrides.

    ``origins``: where each value was written, by path; ``lines``: the line of each key in the file.
    """

    file: DeployFile = field(default_factory=DeployFile)
    name: str = "deploy file"
    origins: Mapping[Path, Origin] = field(default_factory=dict[Path, Origin])
    lines: Mapping[Path, int] = field(default_factory=dict[Path, int])

    def origin(self, path: Path) -> Origin | None:
        """Where the value at ``path``, or the last written of those below it, comes from."""
        below = [origin for known, origin in self.origins.items() if known[: len(path)] == path]
        if Origin.COMMAND in below:
            return Origin.COMMAND
        return below[0] if below else None

    def place(self, path: Sequence[str | int]) -> str | None:
        """Where the user wrote ``path``, or the nearest key above it: ``deploy.yaml, line 4``."""
        keys = tuple(key for key in path if isinstance(key, str))
        for end in range(len(keys), 0, -1):
            if self.origin(keys[:end]) is Origin.COMMAND:
                return "--set"
            if keys[:end] in self.lines:
                return f"{self.name}, line {self.lines[keys[:end]]}"
        return None


class Problems:
    """Collects what is wrong, so that the user sees all of it in one block."""

    def __init__(self, deploy: Deploy) -> None:
        self._deploy = deploy
        self._lines: list[str] = []

    def add(self, path: Sequence[str | int], message: str) -> None:
        """``message`` completes a sentence that begins with ``path``."""
        place = self._deploy.place(path)
        self._lines.append(
            f"{place}: {format_path(path)}: {message}" if place else f"{format_path(path)}: {message}"
        )

    def say(self, sentence: str) -> None:
        """What is wrong with no one place."""
        self._lines.append(sentence)

    def raise_if_any(self, kind: type[UserError] = ConfigError) -> None:
        if len(self._lines) == 1:
            raise kind(self._lines[0])
        if self._lines:
            raise kind("\n".join([f"{len(self._lines)} problems:", *(f"  {line}" for line in self._lines)]))


def parse_deploy(text: str = "", *, overrides: Iterable[str] = (), name: str = "deploy file") -> Deploy:
    """Read a deploy file's text and apply ``path=value`` overrides, later ones last.

    ``name`` is what messages call the file. Raises ``ConfigError`` and nothing else.
    """
    source = read_yaml(text, name=name)
    document: Json = {} if source.value is None else source.value
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: a deploy file is a mapping; start with a key such as `services:`")
    _expand_short_forms(document)
    origins = {path: Origin.DEPLOY for path, _ in leaves(document, ()) if path}
    for override in overrides:
        path, value = _parse_override(override)
        _set_value(document, path, value, override)
        _expand_short_forms(document)
        origins = {known: origin for known, origin in origins.items() if known[: len(path)] != path}
        below = _value_at(document, path)
        origins |= {leaf: Origin.COMMAND for leaf, _ in leaves(below, path)}
    _drop_empty_sections(document)
    draft = Deploy(name=name, origins=origins, lines=source.lines)
    return Deploy(file=_validate(document, draft), name=name, origins=origins, lines=source.lines)


def _parse_override(override: str) -> tuple[Path, Json]:
    target, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write path=value, e.g. --set services.Decode.replicas=2")
    return parse_path(target.strip()), read_yaml(text, name=f"--set {override}").value


def _set_value(document: dict[str, Json], path: Path, value: Json, override: str) -> None:
    here = document
    for depth, key in enumerate(path[:-1], start=1):
        child = here.setdefault(key, {})
        if child is None:
            child = here[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {override}: {format_path(path[:depth])} is {child!r} and has no keys below it"
            )
        here = child
    here[path[-1]] = value


def _value_at(document: dict[str, Json], path: Path) -> Json:
    here: Json = document
    for key in path:
        assert isinstance(here, dict)
        here = here[key]
    return here


def _expand_short_forms(document: dict[str, Json]) -> None:
    """``router: kv`` -> ``router: {name: kv}``, ``model: demo`` -> ``model: {path: demo}``, in place."""

    def expand(holder: Json, key: str, into: str) -> None:
        if isinstance(holder, dict) and isinstance(value := holder.get(key), str):
            holder[key] = {into: value}

    expand(document, "router", "name")
    expand(document, "planner", "name")
    expand(document, "model", "path")
    expand(document.get("model"), "router", "name")
    if isinstance(models := document.get("models"), dict):
        for name in models:
            expand(models, name, "path")
            expand(models[name], "router", "name")


def _drop_empty_sections(document: dict[str, Json]) -> None:
    """A key with nothing after it (all its lines are comments, say) counts as not written."""
    for key, value in list(document.items()):
        if value is None and key in DeployFile.model_fields:
            del document[key]
    if isinstance(services := document.get("services"), dict):
        document["services"] = {name: {} if value is None else value for name, value in services.items()}


def _validate(document: dict[str, Json], draft: Deploy) -> DeployFile:
    problems = Problems(draft)
    file = DeployFile()
    try:
        file = DeployFile.model_validate(document)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems.add(details["loc"], _explain(details))
        for path, tier in _tiers_of(document):
            check_tier(tier, path, problems)
    if document.get("model") and document.get("models"):
        problems.add(("models",), "give `model` (one) or `models` (several), not both")
    problems.raise_if_any()
    return file


def check_tier(
    written: Mapping[str, object], path: Sequence[str | int], problems: Problems
) -> TierSection | None:
    """The keys of a tier that are ours, and its store's as they are; None where one of ours is wrong."""
    try:
        return TierSection.model_validate(dict(written))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems.add((*path, *details["loc"]), _explain(details))
        return None


def _tiers_of(document: dict[str, Json]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Json]]]:
    """The tiers of a document, whatever else is wrong with it."""
    models = document.get("models")
    several = [("models", name) for name in models] if isinstance(models, dict) else []
    for above in [(), ("model",), *several]:
        here: Json = document
        path: Path = (*above, "kv", "tiers")
        for key in path:
            here = here.get(key) if isinstance(here, dict) else None
        for number, tier in enumerate(here if isinstance(here, list) else ()):
            if isinstance(tier, dict):
                yield (*path, number), tier


def _explain(details: ErrorDetails) -> str:
    loc = details["loc"]
    if details["type"] == "extra_forbidden":
        return f"unknown key{suggest(str(loc[-1]), _keys_at(loc[:-1]))}"
    if details["type"] == "missing":
        is_model = loc[0] in ("model", "models") and loc[-1] == "path"
        return f"is missing{_MODEL_HINT if is_model else ''}"
    return describe_validation_error(details)


def describe_validation_error(details: ErrorDetails) -> str:
    """One pydantic error in our words: what it should be, and what it is."""
    rule = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if details["type"] in ("model_type", "dict_type"):
        rule = "should be a mapping"
    elif details["type"] == "string_too_short":
        rule = "should not be empty"
    shown = repr(details["input"])
    return rule if shown in rule or len(shown) > 60 else f"{rule}, is {shown}"


def _keys_at(parents: Sequence[str | int]) -> list[str]:
    """The keys that are valid below ``parents``."""
    here: Any = DeployFile
    for key in parents:
        here = get_args(here)[1] if get_origin(here) is dict else here.model_fields[key].annotation
        if get_origin(here) in (Union, UnionType):
            here = get_args(here)[0]
    return list(here.model_fields)
