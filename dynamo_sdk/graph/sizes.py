"""Sizes as people write them: ``2GiB``, ``500 MB``, ``1048576``."""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", start=1)},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes, rounded down. Raises ``ValueError`` for what is no size, or none above 0."""
    match = _SIZE.fullmatch(str(text))
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError("should be a size such as 2GiB, 500MB or a number of bytes")
    whole, _, fraction = match[1].partition(".")
    num_bytes = int(whole + fraction) * unit // int("1" + "0" * len(fraction))
    if num_bytes < 1:
        raise ValueError("should be above 0")
    return num_bytes
