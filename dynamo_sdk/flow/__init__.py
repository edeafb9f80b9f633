"""The life of a request, without I/O."""

from .actions import Action, CancelLeg, Emit, Fail, Migrated, Observe, ReleaseBlocks, Route, Send
from .admission import AdmissionLimits, AdmissionQueue, Waiting
from .request_flow import OVER, FlowConfig, FlowState, RequestFlow

__all__ = [
    "OVER",
    "Action",
    "AdmissionLimits",
    "AdmissionQueue",
    "CancelLeg",
    "Emit",
    "Fail",
    "FlowConfig",
    "FlowState",
    "Migrated",
    "Observe",
    "ReleaseBlocks",
    "RequestFlow",
    "Route",
    "Send",
    "Waiting",
]
