"""Which of several sources decides a value, and the record of it that ``plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from dynamo_sdk.types.plan import Json, Origin, Setting

from .deploy import Deploy
from .paths import Path, format_path, leaves

T = TypeVar("T", int, str)


class SettingsLog:
    """Decides values and remembers where each came from, in the order of the questions."""

    def __init__(self, deploy: Deploy) -> None:
        self._deploy = deploy
        self._settings: list[Setting] = []

    def record(self, path: Sequence[str | int], value: Json, origin: Origin) -> None:
        self._settings.append(Setting(path=format_path(path), value=value, origin=origin))

    def pick(self, path: Path, *, written: T | None, graph: T | None = None, default: T) -> T:
        """What the user wrote at ``path``, else what ``Graph(...)`` says, else the default."""
        if written is not None:
            self.record(path, written, self._written_origin(path))
            return written
        if graph is not None:
            self.record(path, graph, Origin.GRAPH)
            return graph
        self.record(path, default, Origin.DEFAULT)
        return default

    def record_written(self, path: Path, value: Json) -> None:
        """A value without a default: shown only where somebody wrote it."""
        if value is not None:
            self.record(path, value, self._written_origin(path))

    def record_args(
        self, path: Path, args: Mapping[str, object], defaults: Mapping[str, Json], origin: Origin
    ) -> None:
        """Arguments as written, and below them the defaults, of ``origin``, for the rest."""
        for leaf, value in leaves(cast(Json, args), path):
            if leaf != path:
                self.record(leaf, value, self._written_origin(leaf))
        for name, value in defaults.items():
            if name not in args:
                self.record((*path, name), value, origin)

    def record_item(
        self,
        path: Path,
        number: int,
        written: Mapping[str, Json],
        defaults: Mapping[str, Json],
    ) -> None:
        """One mapping of the list at ``path``: as written, and the plugin's defaults for the rest."""
        origin = self._written_origin(path)
        for name, value in written.items():
            self.record((*path, number, name), value, origin)
        for name, value in defaults.items():
            if name not in written:
                self.record((*path, number, name), value, Origin.PLUGIN)

    def settings(self) -> tuple[Setting, ...]:
        return tuple(self._settings)

    def _written_origin(self, path: Path) -> Origin:
        return self._deploy.origin(path) or Origin.DEPLOY
