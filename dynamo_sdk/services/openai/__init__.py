"""The OpenAI-compatible HTTP API, and its server, over an abstract ``Backend``."""

from .app import OpenAIApp
from .backend import Backend, BackendCall, ChunkSink, GenerateOptions, Health
from .limits import HttpLimits
from .server import serve

__all__ = [
    "Backend",
    "BackendCall",
    "ChunkSink",
    "GenerateOptions",
    "Health",
    "HttpLimits",
    "OpenAIApp",
    "serve",
]
