"""The metric table as a page for people: ``python -m dynamo_sdk.metrics.document > docs/metrics.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .definitions import COMPONENT_METRICS, FRONTEND_METRICS, KVBM_METRICS, Metric

_INTRODUCTION = """\
# Metrics

`GET /metrics` of a frontend answers in the Prometheus text format for the whole graph: its own series, those
of the other replicas of its service, and those of the workers behind it. So scrape one address per graph;
which frontend answers makes no difference. Each series has the id of its process as `worker_id`: sum over
it. A process that does not answer within two seconds is left out.

This page is written from the table in `dynamo_sdk/metrics/definitions.py`; a test keeps the two equal. Names
are NVIDIA Dynamo's where the meaning is the same.
"""


def metrics_page() -> str:
    sections = [
        _INTRODUCTION,
        _section("Frontend", FRONTEND_METRICS),
        _section("Workers", COMPONENT_METRICS),
        _section("Cache tiers of workers", KVBM_METRICS),
    ]
    return "\n".join(sections)


def _section(title: str, metrics: Sequence[Metric]) -> str:
    rows = [
        f"| `{metric.name}` | {metric.kind.value} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |"
        for metric in metrics
    ]
    return "\n".join(
        [f"## {title}", "", "| name | kind | labels | meaning |", "|---|---|---|---|", *rows, ""]
    )


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
