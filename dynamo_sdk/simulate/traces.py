"""Workloads from files, and to files.

==========  =================================================================================================
format      a request
==========  =================================================================================================
Mooncake    JSONL: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids`` (one per block of
            tokens), and perhaps ``session_id``; a later turn of a session may have ``delay`` (ms after the
            end of the one before) in the place of ``timestamp``
Azure       CSV: ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``; no prefix is shared
==========  =================================================================================================
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from dynamo_sdk.errors import ConfigError

from .arrivals import Arrival, Workload

DEFAULT_BLOCK_TOKENS = 512
_MOONCAKE_LINE = '{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}'
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _MooncakeRow(msgspec.Struct, omit_defaults=True):
    input_length: _Count
    output_length: _Count
    timestamp: _Milliseconds | None = None
    hash_ids: tuple[int, ...] = ()
    session_id: str | int | None = None
    delay: _Milliseconds | None = None
    priority: int = 0


def read_workload(
    path: Path,
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    speed: float = 1.0,
    max_requests: int | None = None,
) -> Workload:
    """A trace, ``speed`` times as fast, its first request at 0. The format is that of the first line.

    Raises ``ConfigError`` that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {str(path)!r}: {error}") from error
    lines = text.splitlines()
    is_azure = bool(lines) and lines[0].startswith(_AZURE_COLUMNS[0])
    found = list(_azure(path, lines) if is_azure else _mooncake(path, lines))
    if not found:
        raise ConfigError(f"the trace {str(path)!r} is empty")
    timed = sorted(
        [arrival for arrival in found if not arrival.is_relative], key=lambda arrival: arrival.at_s
    )[:max_requests]
    first_s = timed[0].at_s
    sessions = {arrival.session for arrival in timed}
    followers = [arrival for arrival in found if arrival.is_relative and arrival.session in sessions]
    if max_requests is not None:
        followers = followers[: max_requests - len(timed)]
    moved = [msgspec.structs.replace(arrival, at_s=(arrival.at_s - first_s) / speed) for arrival in timed]
    return Workload(name=path.name, arrivals=(*moved, *followers), block_tokens=block_tokens)


def write_workload(workload: Workload, path: Path) -> None:
    """As a Mooncake trace. Raises ``ConfigError``."""
    rows = [
        _MooncakeRow(
            timestamp=None if arrival.is_relative else round(arrival.at_s * 1e3, 3),
            delay=round(arrival.at_s * 1e3, 3) if arrival.is_relative else None,
            input_length=arrival.num_input_tokens,
            output_length=arrival.num_output_tokens,
            hash_ids=arrival.hash_ids,
            session_id=arrival.session,
            priority=arrival.priority,
        )
        for arrival in workload.arrivals
    ]
    try:
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _mooncake(path: Path, lines: Sequence[str]) -> Iterator[Arrival]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    begun: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}:{number}: {error}; a line is {_MOONCAKE_LINE}") from error
        session = None if row.session_id is None else str(row.session_id)
        is_relative = row.timestamp is None
        if is_relative and (row.delay is None or session not in begun):
            raise ConfigError(
                f"{path}:{number}: there is no timestamp; only a later turn of a session_id may have a delay "
                "in its place"
            )
        if session is not None:
            begun.add(session)
        yield Arrival(
            at_s=(row.timestamp or 0.0) / 1e3 if not is_relative else (row.delay or 0.0) / 1e3,
            num_input_tokens=row.input_length,
            num_output_tokens=row.output_length,
            hash_ids=row.hash_ids,
            session=session,
            is_relative=is_relative,
            priority=row.priority,
        )


def _azure(path: Path, lines: Sequence[str]) -> Iterator[Arrival]:
    rows = csv.DictReader(lines)
    for number, row in enumerate(rows, 2):
        try:
            at, num_input, num_output = (row[column] for column in _AZURE_COLUMNS)
            # Seven decimals of a second are one more than fromisoformat takes.
            yield Arrival(
                at_s=datetime.fromisoformat(at[:26]).replace(tzinfo=UTC).timestamp(),
                num_input_tokens=max(1, int(num_input)),
                num_output_tokens=max(1, int(num_output)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}:{number}: {error}; columns are {', '.join(_AZURE_COLUMNS)}") from error
