"""Python middleware between OpenAI-compatible clients and LLM inference engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_sdk.graph import Graph, depends, endpoint, service
    from dynamo_sdk.plugins import hookimpl

__version__ = "0.1.0"

__all__ = ["Graph", "__version__", "depends", "endpoint", "hookimpl", "service"]


def __getattr__(name: str) -> object:
    # Worker processes import single rooms of this package; they should not pay for the graph.
    if name == "hookimpl":
        from dynamo_sdk.plugins.markers import hookimpl

        return hookimpl
    if name in __all__:
        from dynamo_sdk import graph

        return getattr(graph, name)
    raise AttributeError(f"module 'dynamo_sdk' has no attribute {name!r} (public: {', '.join(__all__)})")
