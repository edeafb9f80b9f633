"""Figures from records by hand, and the page that shows them."""

from __future__ import annotations

import dataclasses
import re
from io import StringIO
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from rich.console import Console

from dynamo_sdk.bench.report import Targets
from dynamo_sdk.simulate import Arrival, Outcome, RequestRecord, Workload
from dynamo_sdk.simulate.html import render_html
from dynamo_sdk.simulate.record import Scaling, WorkerRecord
from dynamo_sdk.simulate.report import SimReport, make_report
from dynamo_sdk.simulate.text import print_report

ARRIVAL = Arrival(at_s=1.0, num_input_tokens=100, num_output_tokens=5, hash_ids=(1,))
WORKLOAD = Workload(name="<trace>", arrivals=(ARRIVAL,) * 4)


def request(index: int, ttft_s: float | None, e2e_s: float | None, **more: object) -> RequestRecord:
    return RequestRecord(
        index=index,
        arrival_s=1.0,
        num_input_tokens=100,
        num_output_tokens=5,
        first_token_s=None if ttft_s is None else 1.0 + ttft_s,
        last_token_s=None if e2e_s is None else 1.0 + e2e_s,
        num_tokens=5 if e2e_s else 0,
        admitted_s=None if ttft_s is None else 1.25,
        **more,  # type: ignore[arg-type]
    )


def worker(number: int, num_requests: int, busy_s: float) -> WorkerRecord:
    return WorkerRecord(
        worker_id=f"W.{number}",
        service="W",
        role="aggregated",
        num_gpus=2,
        since_s=0.0,
        until_s=36.0,
        num_requests=num_requests,
        num_prefill_tokens=100 * num_requests,
        num_steps=9,
        num_preempted=number,
        busy_s=busy_s,
    )


OUTCOME = Outcome(
    router="<mine>",
    requests=[
        request(0, 0.5, 1.5, num_cached_tokens=0, num_reused_tokens=50, num_predicted_tokens=20),
        request(
            1, 0.5, 2.5, num_cached_tokens=80, num_reused_tokens=80, transfer_s=0.2, transfer_bytes=10**9
        ),
        request(2, 1.0, 4.0),
        request(3, None, None, error="Overloaded: full"),
    ],
    workers=[worker(0, 3, 30.0), worker(1, 1, 10.0)],
    gap_s=np.array([0.2, 0.1, 0.4]),
    gap_counts=np.array([1, 8, 1]),
    ended_s=5.0,
    scalings=[Scaling(at_s=2.0, service="W", num_replicas=2, reason="busy")],
)


def made(targets: Targets | None = None) -> SimReport:
    return make_report(WORKLOAD, [OUTCOME], targets=targets or Targets(), settings={"target": "g.py"})


def test_figures() -> None:
    (policy,) = made(Targets(ttft_ms=600, itl_ms=300)).policies
    assert (policy.seconds, policy.num_requests, policy.num_ok) == (4.0, 4, 3)
    assert policy.ttft_ms and policy.ttft_ms.mean == pytest.approx(2000 / 3)  # noqa: PT018
    assert policy.itl_ms and policy.itl_ms.max == pytest.approx(750)  # noqa: PT018
    assert policy.queue_ms and policy.queue_ms.p50 == pytest.approx(250)  # noqa: PT018
    assert policy.errors == {"Overloaded: full": 1}
    assert policy.requests_per_s == 0.75
    assert policy.output_tokens_per_s == 15 / 4
    assert policy.goodput and policy.goodput.share == 0.25  # noqa: PT018
    assert policy.num_preemptions == 1
    assert (policy.worker_hours, policy.gpu_hours) == (0.02, 0.04)


def test_errors_that_differ_in_numbers_alone_are_one_kind() -> None:
    long = [f"ContextLengthExceeded: {length} tokens; allowed are 4096" for length in (5000, 6000, 6000)]
    errors = ["Overloaded: worker 3 is full", *long, "Overloaded: worker 3 is full"]
    failed = [request(number, None, None, error=error) for number, error in enumerate(errors)]
    outcome = dataclasses.replace(OUTCOME, requests=failed)
    (policy,) = make_report(WORKLOAD, [outcome], targets=Targets(), settings={}).policies
    assert list(policy.errors.items()) == [
        ("ContextLengthExceeded: N tokens; allowed are N", 3),
        ("Overloaded: worker 3 is full", 2),
    ]


def test_gaps_are_weighted_by_how_often_they_occurred() -> None:
    (policy,) = made().policies
    gaps = policy.gap_ms
    assert gaps is not None
    assert (gaps.count, gaps.mean) == (10, pytest.approx(140))
    assert (gaps.p50, gaps.p90, gaps.p95, gaps.max) == (100, 200, 400, 400)


def test_reuse_transfer_and_balance() -> None:
    (policy,) = made().policies
    assert (policy.reuse.predicted, policy.reuse.cached, policy.reuse.with_restarts) == (0.05, 0.2, 0.325)
    assert policy.reuse.reusable == 0.75
    assert policy.transfers is not None
    assert policy.transfers.num_bytes == 10**9
    assert policy.transfers.ms is not None
    assert policy.transfers.ms.mean == pytest.approx(200)
    assert (policy.balance.requests, policy.balance.prefill_tokens, policy.balance.busy) == (1.5, 1.5, 1.5)


def test_a_report_is_the_same_after_json() -> None:
    report = made(Targets(ttft_ms=5))
    assert msgspec.json.decode(msgspec.json.encode(report), type=SimReport) == report


def test_nothing_is_a_report_too() -> None:
    empty = Outcome(
        router="r", requests=[], workers=[], gap_s=np.zeros(0), gap_counts=np.zeros(0, int), ended_s=0.0
    )
    report = make_report(Workload(name="w", arrivals=()), [empty], targets=Targets(ttft_ms=1), settings={})
    assert report.policies[0].ttft_ms is None
    print_report(report, Console(file=StringIO()))
    assert "no values" in render_html(report, [empty])


def test_the_text_has_a_column_per_policy() -> None:
    printed = StringIO()
    print_report(made(Targets(ttft_ms=600)), Console(file=printed, width=120))
    text = printed.getvalue()
    for said in (
        "<trace>: 4 requests, 400 tokens in, 20 out",
        "<mine>",
        "3 ok, 1 failed",
        "50.0%",
        "20.00%",
        "5.00%",
        "1.00",
        "<mine>: 1 x Overloaded: full",
    ):
        assert said in text


def test_the_page_stands_alone() -> None:
    page = render_html(made(), [OUTCOME])
    assert "&lt;trace&gt;" in page
    assert "<trace>" not in page
    assert "<mine>" not in page
    assert "<script" not in page
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {"http://www.w3.org/2000/svg"}
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        ET.fromstring(drawing)
    assert page == render_html(made(), [OUTCOME])
