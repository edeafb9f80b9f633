"""Say what in Python: services, their edges, and the compiler that turns them into a plan.

Light names only; ``deploy``, ``compile`` and ``render`` (pydantic, rich) are imported from their modules.
"""

from .endpoints import EndpointSpec, endpoints_of
from .graph import Graph, ServiceNode
from .markers import (
    Dependency,
    EngineService,
    FrontendService,
    dependencies_of,
    depends,
    endpoint,
    is_endpoint,
    is_service,
    service,
)

__all__ = [
    "Dependency",
    "EndpointSpec",
    "EngineService",
    "FrontendService",
    "Graph",
    "ServiceNode",
    "dependencies_of",
    "depends",
    "endpoint",
    "endpoints_of",
    "is_endpoint",
    "is_service",
    "service",
]
