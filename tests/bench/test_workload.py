from __future__ import annotations

from itertools import islice, pairwise, repeat
from pathlib import Path
from random import Random
from statistics import fmean

import pytest

from dynamo_sdk.bench.workload import (
    TraceRow,
    even_times,
    poisson_times,
    read_trace,
    same_size,
    trace_times,
    traced,
)
from dynamo_sdk.errors import ConfigError

ROWS = [TraceRow(2000, 600, 7, (0, 1)), TraceRow(2500, 500, 3), TraceRow(4000, 1, 1)]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_an_exponential() -> None:
    times = list(islice(poisson_times(50, Random(1)), 20_000))
    gaps = [b - a for a, b in pairwise(times)]
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.3679, rel=0.03)
    assert times == list(islice(poisson_times(50, Random(1)), 20_000))


def test_even_arrivals_are_equally_far_apart() -> None:
    assert list(islice(even_times(4), 4)) == [0, 0.25, 0.5, 0.75]


def test_a_trace_starts_at_once_and_keeps_its_own_times() -> None:
    assert list(trace_times(ROWS, 1)) == [0, 0.5, 2]
    assert list(trace_times(ROWS, 2)) == [0, 0.25, 1]


def test_a_trace_ends_and_a_size_does_not() -> None:
    asks = list(traced(ROWS, repeat(None)))
    assert [(ask.index, ask.num_input_tokens, ask.num_output_tokens, ask.hash_ids) for ask in asks] == [
        (0, 600, 7, (0, 1)),
        (1, 500, 3, ()),
        (2, 1, 1, ()),
    ]
    assert [ask.index for ask in islice(same_size(5, 6, repeat(None)), 4)] == [0, 1, 2, 3]


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"timestamp": 9, "input_length": 2, "output_length": 1, "hash_ids": [4]}\n\n'
        '{"timestamp": 3.5, "input_length": 1, "output_length": 1, "more": true}\n'
    )
    assert read_trace(file) == [TraceRow(3.5, 1, 1), TraceRow(9, 2, 1, (4,))]


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "is empty"), ("{}\n", "trace.jsonl:1: "), ('\n{"timestamp": -1}', "trace.jsonl:2: ")],
)
def test_a_trace_that_is_none_is_the_users_error(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_trace(file)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none")
