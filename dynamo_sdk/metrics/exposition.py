"""Join the Prometheus texts of several processes into one valid text.

Each metric may be described once and its samples must stand together, so plain concatenation is wrong.
``*_created`` series, which no dashboard of ours reads, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

_CREATED = b"_created"


def merge_texts(texts: Iterable[bytes]) -> bytes:
    """Families keep the order in which they first appear; the first description of each wins."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for text in texts:
        family = b""
        is_first = False
        for line in text.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                name = line.split(b" ", 3)[2]
                if name != family:
                    family, is_first = name, name not in heads
                    heads.setdefault(name, [])
                    samples.setdefault(name, [])
                if is_first:
                    heads[family].append(line)
            elif line and not line.startswith(b"#") and family:
                samples[family].append(line)
    lines: list[bytes] = []
    for family, head in heads.items():
        if not family.endswith(_CREATED):
            lines += head
            lines += samples[family]
    return b"\n".join(lines) + b"\n" if lines else b""
