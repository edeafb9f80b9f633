"""Ready-made services: subclass them, say what they depend on, and run the graph."""

from .frontend import Frontend
from .worker import DecodeWorker, PrefillWorker, Worker

__all__ = ["DecodeWorker", "Frontend", "PrefillWorker", "Worker"]
