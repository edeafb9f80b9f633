"""What a run of the side-by-side measurement makes of its windows."""

import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.side_by_side import plot, soak, table
from benchmarks.side_by_side.bodies import BodyKind, BodyWriter
from benchmarks.side_by_side.cells import FULL, Cell, cells_of
from benchmarks.side_by_side.loadgen import Load, LoadFailed, Outcome, read
from benchmarks.side_by_side.measure import figures_of
from benchmarks.side_by_side.probe import Probe
from benchmarks.side_by_side.stacks import Stack
from benchmarks.side_by_side.stats import ratio_of, slope

FINITE = st.floats(min_value=-1e3, max_value=1e3)


def cell_record(cell, side, repetition, **figures):
    return {"kind": "cell", "cell": cell, "side": side, "repetition": repetition, **figures}


def pair(cell, figure, ours, theirs):
    """Records of one figure, repetition by repetition."""
    return [
        cell_record(cell, side, repetition, **{figure: value})
        for repetition, values in enumerate(zip(ours, theirs, strict=True))
        for side, value in zip(("ours", "dynamo"), values, strict=True)
    ]


def test_a_ratio_is_taken_within_each_repetition():
    ratio = ratio_of([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    assert (ratio.median, ratio.lowest, ratio.highest) == (2.0, 1.0, 3.0)
    assert str(ratio) == "2.00 (1.00..3.00)"
    with pytest.raises(ValueError, match="1 values against 2"):
        ratio_of([1.0], [1.0, 2.0])


@given(st.floats(-100, 100), FINITE, st.lists(st.integers(0, 1000), min_size=7, max_size=20, unique=True))
def test_a_slope_is_found_beside_an_outlier(per_x, start, xs):
    ys = [start + per_x * x for x in xs]
    assert slope(xs, ys) == pytest.approx(per_x, abs=1e-6)
    ys[0] += 1e9
    assert slope(xs, ys) == pytest.approx(per_x, abs=1e-6)


def test_a_slope_needs_two_places():
    with pytest.raises(ValueError, match="two different x"):
        slope([1.0, 1.0], [2.0, 3.0])


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijkl"
    words = ["?", *(f"x{number}" for number in range(299))]
    words += [f"Ġ{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters[:1]]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def test_no_two_bodies_are_alike(tokenizer):
    writer = BodyWriter(tokenizer, model="m")
    kind = BodyKind(num_prompt_tokens=40, num_output_tokens=3, stream=True)
    bodies = [*writer.bodies(kind, 200), *writer.bodies(kind, 200)]
    assert len(set(bodies)) == 400
    fields = json.loads(bodies[0])
    assert fields["max_tokens"] == 3
    assert fields["stream"]
    assert len(tokenizer.encode(fields["messages"][0]["content"]).ids) == 30


def test_bodies_of_a_seed_come_again_and_others_differ(tokenizer):
    kind = BodyKind(num_prompt_tokens=40, num_output_tokens=1, stream=False)
    first, again, other = (
        list(BodyWriter(tokenizer, model="m", seed=seed).bodies(kind, 5)) for seed in (3, 3, 4000)
    )
    assert first == again
    assert not set(first) & set(other)


def test_cells_have_names_of_their_own():
    names = [cell.name for cell in cells_of(["stream", "whole", "ttft", "paced"], FULL)]
    assert len(names) == len(set(names))
    assert "whole/16384/16" in names
    assert "whole/16384/64" not in names


def window(**changes):
    return {
        "seconds": 2.0,
        "num_done": 10,
        "num_events": 100,
        "client_cpu_s": 0.5,
        "latency_ms_p50": 1.0,
        "ttft_ms_p50": 20.0,
        "gap_ms_p50": None,
        **changes,
    }


def figures(*, num_output_tokens=20, stream=True, speedup=1.0, num_prompt_tokens=128, **changes):
    kind = BodyKind(num_prompt_tokens=128, num_output_tokens=num_output_tokens, stream=stream)
    load = Load(concurrency=1, warm_s=1.0, measure_s=2.0)
    cell = Cell(name="c", kind=kind, load=load, speedup=speedup, first_rate=1.0)
    side = Stack(name="ours", port=1, frontend_pids=(1, 2), worker_pids=(3,))
    probe = Probe(num_prompt_tokens=num_prompt_tokens, num_events=20)
    return figures_of(cell, Outcome(window(**changes), (0.1, 0.2, 0.6)), side, probe)


def test_cpu_is_told_by_request_token_and_event():
    found = figures()
    assert found["tokens_per_s"] == 100.0
    assert found["events_per_s"] == 50.0
    assert found["frontend_us_per_request"] == pytest.approx(30_000)
    assert found["frontend_us_per_token"] == pytest.approx(1_500)
    assert found["frontend_us_per_event"] == pytest.approx(3_000)
    assert found["worker_us_per_token"] == pytest.approx(3_000)
    assert "gap_ms_p50" not in found


def test_what_is_added_to_ttft_leaves_the_modelled_prefill_out():
    assert figures()["ttft_added_ms_p50"] == pytest.approx(
        20.0 - (4.209989e-7 * 128**2 + 1.518344e-2 * 128 + 16.50142)
    )
    assert "ttft_added_ms_p50" not in figures(speedup=1e6)


def test_a_window_without_a_finished_request_has_no_cost_per_request():
    found = figures(num_done=0)
    assert "frontend_us_per_request" not in found
    assert found["frontend_us_per_event"] == pytest.approx(3_000)


def test_a_window_with_a_failed_request_does_not_count():
    printed = {"num_errors": 1, "num_done": 5, "num_events": 5, "last_error": "503 busy", "cpu_s": []}
    with pytest.raises(LoadFailed, match="503 busy"):
        read(printed)


def test_the_table_says_which_goals_are_met():
    records = [
        *pair("stream/128/16", "events_per_s", [200.0, 180.0], [100.0, 100.0]),
        *pair("stream/128/1", "events_per_s", [10.0], [100.0]),
        *pair("stream/128/16", "frontend_us_per_event", [9.0], [10.0]),
        *pair("ttft/128/1", "ttft_added_ms_p50", [1.5], [3.0]),
        {"kind": "failure", "cell": "whole/128/1", "message": "2 requests failed"},
    ]
    text = table.markdown(records)
    assert "| stream/128/16 | events/s | 190 | 100 | 1.90 (1.80..2.00) | 2 | met: at least 1.5 |" in text
    assert "| stream/128/1 | events/s | 10 | 100 | 0.10 (0.10..0.10) | 1 |  |" in text
    assert "missed: at most 0.6" in text
    assert "missed: at most 1, ours below 1" in text
    assert "- whole/128/1: 2 requests failed" in text


def test_a_figure_of_one_side_alone_is_left_out():
    records = [cell_record("stream/128/16", "ours", 0, events_per_s=1.0)]
    assert table.comparisons(records) == []


def test_the_plot_is_a_picture_with_one_point_per_figure():
    records = pair("stream/128/16", "events_per_s", [200.0], [100.0]) + pair(
        "whole/128/16", "requests_per_s", [100.0], [100.0]
    )
    picture = ET.fromstring(plot.svg(records))
    points = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert [point.get("fill") for point in points] == [plot.MET, plot.MISSED]
    assert float(points[0].get("cx")) > float(points[1].get("cx")) == plot.x_of(1.0)


def test_a_soak_reports_the_slope_of_what_came_after_the_caches_filled():
    samples = [100.0, 200.0, 300.0, 300.0, 301.0, 302.0, 303.0, 304.0, 305.0]
    records = [
        {"kind": "soak", "side": "ours", "minute": float(minute), "rss_mib": rss_mib}
        for minute, rss_mib in enumerate(samples)
    ]
    assert "| ours | 8 | 100 | 305 | 305 | +60.0 |" in soak.markdown(records)
    assert soak.markdown([]) == ""
