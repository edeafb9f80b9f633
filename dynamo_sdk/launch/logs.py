"""Many processes, one terminal: lines with the replica's name before them, and a memory of the last ones."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

NUM_KEPT_LINES = 40
NUM_QUEUED_LINES = 10_000
CLOSE_TIMEOUT_S = 2.0
MAX_LINE_BYTES = 1 << 16
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")


class LogPrinter:
    """Writes ``Prefill.0 | text`` lines; in colours on a terminal.

    A thread of its own writes, because a terminal that was paused (Ctrl-S) or a pipe that nobody reads must
    stop neither the supervision nor, once its own pipe is full, a replica. Lines that do not fit into the
    queue are dropped and counted.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._width = 0
        self._colours: dict[str, str] = {}
        self._queue: queue.Queue[tuple[str, str, str] | None] = queue.Queue(NUM_QUEUED_LINES)
        self._num_dropped = 0
        self._thread: threading.Thread | None = None

    def announce(self, name: str) -> None:
        """Make room for this name, so that lines align from the first one on."""
        self._width = max(self._width, len(name))
        self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])

    def line(self, name: str, text: str) -> None:
        """Queue one line; never blocks."""
        self.announce(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="log-printer", daemon=True)
            self._thread.start()
        prefix = f"{name:{self._width}} |"
        try:
            if self._num_dropped:
                self._queue.put_nowait(
                    (prefix, self._colours[name], f"[{self._num_dropped} lines were dropped]")
                )
                self._num_dropped = 0
            self._queue.put_nowait((prefix, self._colours[name], text))
        except queue.Full:
            self._num_dropped += 1

    def close(self) -> None:
        """Return when all is written, or when nobody seems to read. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
                thread.join(CLOSE_TIMEOUT_S)

    def _write_all(self) -> None:
        write = self._coloured_writer() if self._stream.isatty() else self._write_plain
        while (entry := self._queue.get()) is not None:
            try:
                write(*entry)
            except (OSError, ValueError):  # whoever read our errors is gone: no reason to stop serving
                write = _write_nothing

    def _write_plain(self, prefix: str, colour: str, text: str) -> None:
        self._stream.write(f"{prefix} {text}\n")
        self._stream.flush()

    def _coloured_writer(self) -> Callable[[str, str, str], None]:
        from rich.console import Console  # 40 ms that a log file need not pay
        from rich.text import Text

        console = Console(file=self._stream, soft_wrap=True)
        return lambda prefix, colour, text: console.print(
            Text.assemble((prefix, colour), " ", Text.from_ansi(text))
        )


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
