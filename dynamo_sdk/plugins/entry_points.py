"""Finding installed plugins. We read the entry points ourselves, because pluggy drops the second of two
entry points of one name without a word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from .markers import PROJECT
from .problems import Problem, Rule, Source, place_of_error


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A module (or any object) whose marked functions are hooks."""

    source: Source
    plugin: object


def installed_plugins() -> tuple[list[LoadedPlugin], list[Problem]]:
    """Import every entry point of the group ``dynamo_sdk``; what cannot be imported becomes a problem."""
    return load_entry_points(entry_points(group=PROJECT))


def load_entry_points(points: Iterable[EntryPoint]) -> tuple[list[LoadedPlugin], list[Problem]]:
    """As ``installed_plugins``, from given entry points."""
    plugins: list[LoadedPlugin] = []
    problems: list[Problem] = []
    first_of_name: dict[str, Source] = {}
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        source = _source(point)
        first = first_of_name.setdefault(point.name, source)
        if first is not source:
            problems.append(
                Problem(
                    source=source,
                    rule=Rule.ENTRY_POINT_UNIQUE,
                    message=f"its entry point {point.name!r} also belongs to "
                    f"{first.distribution} {first.version}",
                )
            )
        try:
            plugins.append(LoadedPlugin(source, point.load()))
        except (Exception, SystemExit) as error:
            file, line = place_of_error(error)
            problems.append(
                Problem(
                    source=source,
                    rule=Rule.IMPORTABLE,
                    message=f"importing {point.value} raised {type(error).__name__}: {error}",
                    file=file,
                    line=line,
                    is_fatal=True,
                )
            )
    return plugins, problems


def _source(point: EntryPoint) -> Source:
    if point.dist is None:
        return Source(plugin=point.name, distribution="unknown", version="")
    return Source(plugin=point.name, distribution=point.dist.name, version=point.dist.version)
