"""Routing, sans I/O: stages that filter, score and pick, and the routers made of them."""

from .book import CandidateBook, OverlapIndex
from .filters import Sample
from .function import router_from_function
from .pickers import pick_any, pick_lowest
from .scorers import OtherRequests, WaitingRequests, active_requests
from .staged import StagedRouter
from .stages import BatchScorer, Filter, Pick, Picker, Scorer

__all__ = [
    "BatchScorer",
    "CandidateBook",
    "Filter",
    "OtherRequests",
    "OverlapIndex",
    "Pick",
    "Picker",
    "Sample",
    "Scorer",
    "StagedRouter",
    "WaitingRequests",
    "active_requests",
    "pick_any",
    "pick_lowest",
    "router_from_function",
]
