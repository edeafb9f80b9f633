"""Which exceptions a log tells of: an engine's own processes raise the cause long before the replica ends."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_KEPT = 8
"""The first ones: what is raised later mostly follows from them."""

_RAISED = re.compile(r"(?:\S.*?[\])] )?(?P<text>(?:[A-Za-z_][\w.]*)?(?:Error|Exception)(?:: .*)?)$")
"""The last line of a traceback, perhaps behind what a logger puts before it; lines of code are indented."""


class RaisedExceptions:
    """The first exceptions of a log, each once, from its lines."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def feed(self, line: str) -> None:
        if len(self._texts) < MAX_KEPT and (found := raised_in(line)) is not None:
            self._texts.setdefault(found)

    def clear(self) -> None:
        self._texts.clear()

    def not_in(self, lines: Iterable[str]) -> list[str]:
        """Those that ``lines`` do not show, first to last."""
        shown = "\n".join(lines)
        return [text for text in self._texts if text not in shown]


def raised_in(line: str) -> str | None:
    """The exception whose traceback ends with ``line``: its type and what it says."""
    found = _RAISED.match(line)
    return None if found is None else found["text"]
