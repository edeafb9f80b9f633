"""``graph.local()``: a whole graph in this process, for notebooks and tests.

Running a graph is a launcher's business, and launchers lie above this room; so the one named
``inprocess`` is asked for by name, through the plugins, at the moment of the call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from dynamo_sdk.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from .graph import Graph

S = TypeVar("S")

LAUNCHER = "inprocess"

DeploySource = str | os.PathLike[str] | Mapping[str, object]
"""A path to a deploy file, or what would stand in it."""


class LocalApp(Protocol):
    """A graph that runs here and is ready."""

    @property
    def url(self) -> str | None:
        """Where the frontend listens; None without one."""

    def client(self, service: type[S]) -> S:
        """The endpoints of one service, as another service would see them."""
        ...

    async def scale_to(self, service: str, num_replicas: int) -> None:
        """Start or drain replicas of one service until there are so many."""


class _RunsGraphs(Protocol):
    def app(
        self, graph: Graph, *, deploy: str, overrides: Sequence[str], port: int
    ) -> AbstractAsyncContextManager[LocalApp]: ...


def run_locally(
    graph: Graph, deploy: DeploySource | None, overrides: Sequence[str], port: int
) -> AbstractAsyncContextManager[LocalApp]:
    """See ``Graph.local``."""
    from dynamo_sdk.plugins import Registry

    registry = Registry.discover()
    launcher = registry.load(registry.launchers.require(LAUNCHER))
    if not hasattr(launcher, "app"):
        raise PluginError(f"launcher {LAUNCHER!r} ({launcher!r}) cannot run a graph object: it has no app()")
    runs_graphs = cast(_RunsGraphs, launcher)
    return runs_graphs.app(graph, deploy=deploy_text(deploy), overrides=overrides, port=port)


def deploy_text(source: DeploySource | None) -> str:
    """The text of a deploy file. Raises ``ConfigError`` when it cannot be had."""
    if source is None:
        return ""
    if isinstance(source, Mapping):
        try:
            return json.dumps(source, allow_nan=False)  # JSON is YAML
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"deploy: only what JSON can say can stand in a deploy file; {error}"
            ) from error
    file = Path(source)
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the deploy file {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the deploy file {str(file)!r} is not UTF-8 text") from error
