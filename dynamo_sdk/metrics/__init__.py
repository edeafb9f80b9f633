"""Every metric in one table, and typed access for those who measure."""

from .definitions import ALL_METRICS, COMPONENT_METRICS, FRONTEND_METRICS, Metric, MetricKind
from .exposition import merge_texts
from .frontend import LEDGER_STAGES, ChoiceTimer, FrontendMetrics, ModelMetrics, Outcome
from .registry import CONTENT_TYPE, MetricRegistry
from .worker import WorkerMetrics

__all__ = [
    "ALL_METRICS",
    "COMPONENT_METRICS",
    "CONTENT_TYPE",
    "FRONTEND_METRICS",
    "LEDGER_STAGES",
    "ChoiceTimer",
    "FrontendMetrics",
    "Metric",
    "MetricKind",
    "MetricRegistry",
    "ModelMetrics",
    "Outcome",
    "WorkerMetrics",
    "merge_texts",
]
