"""A load generator for OpenAI-compatible servers, and the figures it measures.

``workload``, ``prompts`` and ``target`` decide what is asked when, and write it; ``answer`` reads what comes
back; ``report`` makes figures of it. None of them does I/O. ``driver`` runs the load on a clock, ``http1``
is its network, ``run`` puts all together.
"""

from .plot import plot
from .report import Report, Targets
from .run import Arrivals, BenchOptions, Outcome, run_bench
from .target import Endpoint, Target
from .text import print_report, progress_line

__all__ = [
    "Arrivals",
    "BenchOptions",
    "Endpoint",
    "Outcome",
    "Report",
    "Target",
    "Targets",
    "plot",
    "print_report",
    "progress_line",
    "run_bench",
]
