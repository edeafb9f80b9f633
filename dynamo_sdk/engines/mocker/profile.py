"""``ProfileTiming``: step times from a table of measurements."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from .timing import StepWork, TimingModel

_MS = 1e-3


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. ``num_tokens``: new tokens of a prefill; context tokens of all requests of a decode
    step. ``num_requests``: batch size of a decode step; ignored for prefill."""

    phase: Literal["prefill", "decode"]
    num_tokens: float
    ms: float
    num_requests: float = 1


class Curve:
    """Straight lines between points, the outermost ones prolonged; one point is a constant."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(points)
        self._x = [x for x, _ in ordered]
        self._y = [y for _, y in ordered]
        if len(set(self._x)) != len(self._x):
            raise ValueError(f"two measurements of one size: {self._x}")

    def at(self, x: float) -> float:
        xs, ys = self._x, self._y
        if len(xs) == 1:
            return ys[0]
        right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
        left = right - 1
        return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])


class ProfileTiming(TimingModel):
    """Linear in between, prolonged beyond, never below zero.

    ``path``: a JSON list of objects or a CSV file with a header, with the fields of ``ProfileRow``; decode
    rows of each batch size make a curve of their own, and other batch sizes lie between two curves.
    Raises ``ValueError``, naming the file, when it cannot be used.
    """

    def __init__(self, *, path: str) -> None:
        try:
            rows = _read_rows(Path(path))
            prefill = [(row.num_tokens, row.ms) for row in rows if row.phase == "prefill"]
            decode: dict[float, list[tuple[float, float]]] = {}
            for row in rows:
                if row.phase == "decode":
                    decode.setdefault(row.num_requests, []).append((row.num_tokens, row.ms))
            if not prefill or not decode:
                raise ValueError("it needs at least one prefill and one decode row")
            self._prefill = Curve(prefill)
            self._batch_sizes = sorted(decode)
            self._decode = [Curve(decode[size]) for size in self._batch_sizes]
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise ValueError(f"step times in {path!r}: {error}") from error

    def prefill_s(self, work: StepWork) -> float:
        return max(0.0, self._prefill.at(work.num_prefill_tokens)) * _MS

    def decode_s(self, work: StepWork) -> float:
        sizes, size, num_tokens = self._batch_sizes, work.num_decode_requests, work.num_decode_kv_tokens
        right = min(max(bisect_right(sizes, size), 1), len(sizes) - 1)
        near: Sequence[int] = (right - 1, right) if len(sizes) > 1 else (0,)
        across = Curve((sizes[index], self._decode[index].at(num_tokens)) for index in near)
        return max(0.0, across.at(size)) * _MS


def _read_rows(path: Path) -> list[ProfileRow]:
    if path.suffix == ".json":
        return msgspec.json.decode(path.read_bytes(), type=list[ProfileRow])
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        return msgspec.convert(rows, list[ProfileRow], strict=False)
    raise ValueError(f"write it as .json or .csv, not {path.suffix!r}")
