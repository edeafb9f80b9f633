"""Many processes, one terminal: lines with the replica's name before them, and a memory of the last ones."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import TextIO

NUM_KEPT_LINES = 40
MAX_LINE_BYTES = 1 << 16
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")


class LogPrinter:
    """Writes ``Prefill.0 | text`` lines; in colours on a terminal. Not for several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._width = 0
        self._colours: dict[str, str] = {}
        self._write: Callable[[str, str, str], None] = self._write_plain
        if self._stream.isatty():
            from rich.console import Console  # 40 ms that a log file need not pay

            self._console = Console(file=self._stream, soft_wrap=True)
            self._write = self._write_coloured

    def announce(self, name: str) -> None:
        """Make room for this name, so that lines align from the first one on."""
        self._width = max(self._width, len(name))
        self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])

    def line(self, name: str, text: str) -> None:
        self.announce(name)
        try:
            self._write(f"{name:{self._width}} |", self._colours[name], text)
        except (OSError, ValueError):  # whoever read our errors is gone: no reason to stop serving
            self._write = _write_nothing

    def _write_plain(self, prefix: str, colour: str, text: str) -> None:
        self._stream.write(f"{prefix} {text}\n")
        self._stream.flush()

    def _write_coloured(self, prefix: str, colour: str, text: str) -> None:
        from rich.text import Text

        self._console.print(Text.assemble((prefix, colour), " ", Text.from_ansi(text)))


class LineBuffer:
    """Cuts a stream of bytes into lines; remembers the last ones for an error report."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.last_lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:  # no line end in sight: do not grow for ever
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._emit(line)

    def close(self) -> None:
        """The stream has ended; what is left is a line, too."""
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")  # a progress bar's last state
        self.last_lines.append(text)
        self._on_line(text)


def _write_nothing(prefix: str, colour: str, text: str) -> None:
    pass
