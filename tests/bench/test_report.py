from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from array import array
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dynamo_sdk.bench.load import Load
from dynamo_sdk.bench.panels import ticks
from dynamo_sdk.bench.plot import plot
from dynamo_sdk.bench.record import RequestRecord
from dynamo_sdk.bench.report import Report, Summary, Targets, make_report
from dynamo_sdk.bench.text import print_report, progress_line


def record(index: int, **fields: Any) -> RequestRecord:
    """A request that was sent at second ``index``, took two and got its first of 11 tokens after one."""
    settings: dict[str, Any] = {
        "index": index,
        "due_s": None,
        "sent_s": float(index),
        "ttft_s": 1.0,
        "e2e_s": 2.0,
        "num_chunks": 5,
        "max_gap_s": 0.3,
        "num_asked_input_tokens": 90,
        "num_asked_output_tokens": 11,
        "num_input_tokens": 100,
        "num_cached_tokens": 25,
        "num_output_tokens": 11,
        "finish_reason": "length",
        "error": None,
        "message": None,
    }
    return RequestRecord(**{**settings, **fields})


def report(*records: RequestRecord, targets: Targets | None = None, **fields: Any) -> Report:
    load = Load(
        records=list(records),
        num_sent=len(records),
        **{"began_s": 1.0, "cpu_s": 1.0, "now_s": 5.0, **fields},
    )
    return make_report(load, settings={"model": "m<1>"}, targets=targets or Targets(), num_connections=2)


FAILED = record(2, error="http_429", message="full", ttft_s=None, num_output_tokens=None)
FOUR = (record(0, is_warmup=True), record(1), FAILED, record(3, ttft_s=0.5))


def printed(what: Report) -> str:
    out = io.StringIO()
    print_report(what, Console(file=out, width=80, soft_wrap=True))
    return out.getvalue()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_summary_is_that_of_the_sorted_values(values: list[float]) -> None:
    summary = Summary.of(values)
    assert summary is not None
    assert (summary.count, summary.max) == (len(values), max(values))
    assert summary.mean == pytest.approx(sum(values) / len(values))
    below = sorted(values)[int((len(values) - 1) * 0.9)]
    assert below <= summary.p90 * (1 + 1e-9) + 1e-9
    assert summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= summary.max * (1 + 1e-9) + 1e-9


def test_a_summary_of_nothing_is_none() -> None:
    assert Summary.of([]) is None
    assert Summary.of(np.array([], np.float32)) is None


def test_rates_are_those_of_the_measured_requests() -> None:
    made = report(*FOUR)
    assert made.seconds == 4.0, "from the first measured one, sent at 1, to the last byte at 5"
    assert (made.num_requests, made.num_ok, made.num_warmup) == (3, 2, 1)
    assert (made.requests_per_s, made.output_tokens_per_s, made.input_tokens_per_s) == (0.5, 5.5, 50)
    assert (made.chunks_per_s, made.mean_in_flight, made.cached_share) == (2.5, 1.5, 0.25)
    assert (made.errors, made.error_examples) == ({"http_429": 1}, {"http_429": "full"})
    assert made.ttft_ms is not None
    assert (made.ttft_ms.count, made.ttft_ms.mean) == (2, 750)
    assert made.itl_ms is not None
    assert (made.itl_ms.p50, made.itl_ms.max) == (125, 150)
    assert made.client.cpu_share == 0.25
    assert made.goodput is None


@pytest.mark.parametrize(
    ("targets", "num_good"),
    [
        (Targets(ttft_ms=1000), 2),
        (Targets(ttft_ms=999), 1),
        (Targets(itl_ms=100), 1),
        (Targets(ttft_ms=999, itl_ms=100), 0),
    ],
)
def test_goodput_counts_who_keeps_to_all_targets(targets: Targets, num_good: int) -> None:
    made = report(*FOUR, targets=targets)
    assert made.goodput is not None
    assert made.goodput.requests_per_s == num_good / 4
    assert made.goodput.share == pytest.approx(num_good / 3), "a failed request is not good"
    assert "goodput" in printed(made)


def test_an_answer_of_one_token_meets_any_itl() -> None:
    assert Targets(itl_ms=1).are_met(record(1, num_output_tokens=1))


@pytest.mark.parametrize(
    ("fields", "records", "said"),
    [
        ({"cpu_s": 3.5}, FOUR, "88% of a core"),
        ({"loop_lags_s": array("f", [0.02] * 9)}, FOUR, "the client read 20 ms late"),
        ({}, [record(1, due_s=0.9)], "the client sent 100 ms late"),
        ({}, [record(1, num_output_tokens=None)], "1 of 1 answers name no usage"),
        ({}, [record(1, num_output_tokens=5)], "5 tokens on average of 11 asked"),
    ],
)
def test_warnings(fields: dict[str, Any], records: list[RequestRecord], said: str) -> None:
    made = report(*records, **fields)
    assert len(made.warnings) == 1
    assert said in made.warnings[0]
    assert f"warning: {made.warnings[0]}" in printed(made)


def test_a_good_run_has_no_warnings() -> None:
    assert report(*FOUR).warnings == []


def test_a_run_without_requests_is_still_a_report() -> None:
    made = report(began_s=None, now_s=0.0)
    assert (made.num_requests, made.requests_per_s, made.ttft_ms) == (0, 0, None)
    assert "0 ok, 0 failed" in printed(made)
    ET.fromstring(plot(made, []))


def test_the_text_says_what_the_figures_say() -> None:
    text = printed(report(*FOUR, num_unfinished=4))
    for said in (
        "2 ok, 1 failed, 4 cut off, 1 to warm up, not counted, in 4.00 s",
        "0.50 requests/s, 1.5 in flight",
        "5.5 out/s, 50.0 in/s; 100 in, 11 out each, 25.0% of the input cached",
        "25% of a core",
        "error http_429: 1 x, such as: full",
    ):
        assert said in text
    ttft = next(line for line in text.splitlines() if line.startswith("time to first token"))
    assert ttft.split()[4:7] == ["750.00", "750.00", "950.00"]


def test_a_report_is_the_same_after_json() -> None:
    made = report(*FOUR, targets=Targets(ttft_ms=5))
    assert msgspec.json.decode(msgspec.json.encode(made), type=Report) == made


def test_the_progress_line() -> None:
    line = progress_line(Load(now_s=2.0, num_sent=5, num_output_tokens=40, records=[record(0), record(1)]))
    assert "2 over, 3 running, 0 failed" in line
    assert "1.0 requests/s  20 tokens/s  recent TTFT 1,000 ms" in line


def test_the_plot_is_a_drawing_with_every_request() -> None:
    drawing = plot(report(*FOUR), FOUR)
    root = ET.fromstring(drawing)
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == 3, "two answers and one failure; the warm-up is left out"
    assert len([one for one in root.iter() if one.tag.endswith("polyline")]) == 3
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(
        0 < float(one.attrib["cx"]) < width and 0 < float(one.attrib["cy"]) < height for one in circles
    )
    assert "m&lt;1&gt;" in drawing


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_and_reach_the_limit(limit: float) -> None:
    marks = ticks(limit)
    assert marks[0] == 0
    assert marks[-1] >= limit * (1 - 1e-9)
    assert 2 <= len(marks) <= 7
