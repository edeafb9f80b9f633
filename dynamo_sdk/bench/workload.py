"""What is asked, and when: arrival times, sizes, and traces that give both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from dynamo_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request before it is text. ``due_s``: seconds after the start, None = when a lane is free.
    ``hash_ids``: prefix blocks of a trace, empty = a prompt of its own."""

    index: int
    due_s: float | None
    num_input_tokens: int
    num_output_tokens: int
    hash_ids: tuple[int, ...] = ()


class TraceRow(msgspec.Struct, frozen=True):
    """One line of a Mooncake trace. ``timestamp``: milliseconds; lengths in tokens."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=1)]
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> list[TraceRow]:
    """The rows of a JSONL trace, in order of time. Raises ``ConfigError``, which names the line."""
    decoder = msgspec.json.Decoder(TraceRow)
    rows: list[TraceRow] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the trace {str(path)!r}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}:{number}: {error}; a line is "
                '{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}'
            ) from error
    if not rows:
        raise ConfigError(f"the trace {str(path)!r} is empty")
    return sorted(rows, key=lambda row: row.timestamp)


def poisson_times(rate: float, rng: Random) -> Iterator[float]:
    """Arrivals of independent users, ``rate`` a second on average; seconds after the start."""
    now_s = 0.0
    while True:
        now_s += rng.expovariate(rate)
        yield now_s


def even_times(rate: float) -> Iterator[float]:
    """Arrivals at equal distances; seconds after the start."""
    return (number / rate for number in count())


def trace_times(rows: Iterable[TraceRow], speed: float) -> Iterator[float]:
    """The trace's own arrivals, the first at 0; ``speed`` 2 plays it in half the time."""
    first: float | None = None
    for row in rows:
        first = row.timestamp if first is None else first
        yield (row.timestamp - first) / 1e3 / speed


def same_size(num_input_tokens: int, num_output_tokens: int, times: Iterable[float | None]) -> Iterator[Ask]:
    """Requests of one size, as many as there are times."""
    for index, due_s in enumerate(times):
        yield Ask(
            index=index,
            due_s=due_s,
            num_input_tokens=num_input_tokens,
            num_output_tokens=num_output_tokens,
        )


def traced(rows: Iterable[TraceRow], times: Iterable[float | None]) -> Iterator[Ask]:
    """The sizes and prefixes of a trace at any times, until one of them ends."""
    for index, (row, due_s) in enumerate(zip(rows, times, strict=False)):
        yield Ask(
            index=index,
            due_s=due_s,
            num_input_tokens=row.input_length,
            num_output_tokens=row.output_length,
            hash_ids=row.hash_ids,
        )
