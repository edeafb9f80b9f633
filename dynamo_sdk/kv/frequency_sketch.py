"""``FrequencySketch``: roughly how often each key was seen of late, in a few bytes per key.

A count-min sketch with four rows of small counters, as in TinyLFU (Einziger, Friedman, Manes, 2017): a key's
estimate is the least of its four counters, so it is never too low before ageing. After ``10 * capacity``
increments all counters are halved: what was popular long ago is forgotten.
"""

from __future__ import annotations

from dynamo_sdk.interfaces.kv_store import CacheKey

NUM_ROWS = 4
MAX_COUNT = 255
INCREMENTS_PER_KEY = 10
_ROW_BYTES = 4  # of a key, per row: keys are digests, so their own bytes are the hashes


class FrequencySketch:
    """For about ``capacity`` keys that matter at a time; 4 to 8 bytes for each."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        width = 1 << max(4, (capacity - 1).bit_length())
        self._mask = width - 1
        self._rows = tuple(bytearray(width) for _ in range(NUM_ROWS))
        self._num_until_ageing = self._period = INCREMENTS_PER_KEY * capacity

    def increment(self, key: CacheKey) -> None:
        """Only the lowest of the key's counters grow, which keeps the estimates of others lower."""
        cells = self._cells(key)
        lowest = min(row[cell] for row, cell in zip(self._rows, cells, strict=True))
        if lowest < MAX_COUNT:
            for row, cell in zip(self._rows, cells, strict=True):
                if row[cell] == lowest:
                    row[cell] += 1
        self._num_until_ageing -= 1
        if not self._num_until_ageing:
            self._age()

    def estimate(self, key: CacheKey) -> int:
        """0 … ``MAX_COUNT``."""
        return min(row[cell] for row, cell in zip(self._rows, self._cells(key), strict=True))

    def _cells(self, key: CacheKey) -> tuple[int, ...]:
        return tuple(
            int.from_bytes(key[start : start + _ROW_BYTES], "little") & self._mask
            for start in range(0, NUM_ROWS * _ROW_BYTES, _ROW_BYTES)
        )

    def _age(self) -> None:
        for row in self._rows:
            row[:] = row.translate(_HALVED)
        self._num_until_ageing = self._period


_HALVED = bytes(count >> 1 for count in range(MAX_COUNT + 1))
