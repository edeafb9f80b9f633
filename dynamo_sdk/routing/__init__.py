"""Routing, sans I/O: stages that filter, score and pick, and the routers made of them."""

from .filters import Sample
from .function import router_from_function
from .pickers import pick_any, pick_lowest
from .scorers import OtherRequests, WaitingRequests, active_requests
from .staged import StagedRouter
from .stages import Filter, Pick, Picker, Scored, Scorer

__all__ = [
    "Filter",
    "OtherRequests",
    "Pick",
    "Picker",
    "Sample",
    "Scored",
    "Scorer",
    "StagedRouter",
    "WaitingRequests",
    "active_requests",
    "pick_any",
    "pick_lowest",
    "router_from_function",
]
