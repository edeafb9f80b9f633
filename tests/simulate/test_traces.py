"""Traces as people have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.simulate import Arrival, Workload
from dynamo_sdk.simulate.traces import read_workload, write_workload

MOONCAKE = """\
{"timestamp": 3000, "input_length": 700, "output_length": 9, "hash_ids": [1, 2]}
{"timestamp": 1000, "input_length": 10, "output_length": 1, "hash_ids": [1], "session_id": 7, "more": true}
{"delay": 500, "input_length": 20, "output_length": 2, "session_id": 7}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.9799600,3180,0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_mooncake(file: Path) -> None:
    file.write_text(MOONCAKE)
    assert read_workload(file, speed=2).arrivals == (
        Arrival(at_s=0.0, num_input_tokens=10, num_output_tokens=1, hash_ids=(1,), session="7"),
        Arrival(at_s=1.0, num_input_tokens=700, num_output_tokens=9, hash_ids=(1, 2)),
        Arrival(at_s=0.5, num_input_tokens=20, num_output_tokens=2, session="7", is_relative=True),
    )
    assert [a.num_input_tokens for a in read_workload(file, max_requests=2).arrivals] == [10, 700]
    assert [a.num_input_tokens for a in read_workload(file, max_requests=1).arrivals] == [10]


def test_azure(file: Path) -> None:
    file.write_text(AZURE)
    first, second = read_workload(file).arrivals
    assert (first.at_s, first.num_input_tokens, first.num_output_tokens) == (0.0, 4808, 10)
    assert (second.at_s, second.num_output_tokens) == (pytest.approx(2.0), 1)


def test_there_and_back(file: Path) -> None:
    file.write_text(MOONCAKE)
    workload = read_workload(file)
    write_workload(workload, file)
    assert read_workload(file) == workload


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"timestamp": 0}', ":1: .*input_length.*a line is"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 1}', ":1: "),
        ('{"delay": 1, "input_length": 1, "output_length": 1, "session_id": 1}', ":1: there is no timestamp"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n", ":2: .*columns are"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", ":2: "),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_workload(file)


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the trace"):
        read_workload(file)
    with pytest.raises(ConfigError, match="cannot write"):
        write_workload(Workload(name="w", arrivals=()), file / "below")


def test_what_one_endless_cache_would_find() -> None:
    arrivals = tuple(
        Arrival(at_s=0.0, num_input_tokens=length, num_output_tokens=1, hash_ids=ids)
        for length, ids in ((20, (1, 2)), (20, (1, 3)), (5, (2,)), (12, (1, 2)))
    )
    workload = Workload(name="w", arrivals=arrivals, block_tokens=10)
    assert workload.reusable_share == (0 + 10 + 0 + 12) / 57
