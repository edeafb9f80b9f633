"""A report as a picture: four panels in one SVG file."""

from __future__ import annotations

from collections.abc import Sequence

from .panels import curves, document, dots
from .record import RequestRecord
from .report import Report


def plot(report: Report, records: Sequence[RequestRecord]) -> str:
    """An SVG document: TTFT, ITL and E2E by percentile, and TTFT over the time of sending."""
    measured = [record for record in records if not record.is_warmup]
    good = [record for record in measured if record.error is None]
    began_s = min((record.sent_s for record in measured), default=0.0)
    over_time = [(r.sent_s - began_s, r.ttft_s * 1e3) for r in good if r.ttft_s is not None]
    failed = [(r.sent_s - began_s, 0.0) for r in measured if r.error is not None]
    title = (
        f"{report.settings.get('model')}: {report.num_ok} requests, {report.requests_per_s:.1f} requests/s, "
        f"{report.output_tokens_per_s:.0f} output tokens/s"
    )
    panels = [
        curves("time to first token, ms", {"": [r.ttft_s * 1e3 for r in good if r.ttft_s is not None]}),
        curves("inter-token latency, ms", {"": [itl * 1e3 for r in good if (itl := r.itl_s) is not None]}),
        curves("end to end, ms", {"": [r.e2e_s * 1e3 for r in good]}),
        dots("time to first token, ms, by second of sending", over_time, failed),
    ]
    return document(title, panels)
