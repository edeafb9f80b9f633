from __future__ import annotations

import io
import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.launch import logs
from dynamo_sdk.launch.logs import MAX_LINE_BYTES, NUM_KEPT_LINES, LineBuffer, LogPrinter


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))), st.lists(st.integers(0, 500))
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(lines: list[str], cuts: list[int]) -> None:
    seen: list[str] = []
    buffer = LineBuffer(seen.append)
    data = "\n".join(lines).encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        buffer.feed(data[start:end])
    buffer.close()
    expected = "\n".join(lines).split("\n")
    assert seen == (expected if expected[-1] else expected[:-1])
    assert list(buffer.last_lines) == seen[-NUM_KEPT_LINES:]


def test_a_progress_bar_shows_its_last_state_and_a_line_without_end_is_cut() -> None:
    seen: list[str] = []
    buffer = LineBuffer(seen.append)
    buffer.feed(b"loading 10%\rloading 90%\rloading 100%\r\n\xff\n" + b"x" * (MAX_LINE_BYTES + 1))
    assert seen == ["loading 100%", "\ufffd", "x" * (MAX_LINE_BYTES + 1)]


def test_plain_lines_are_aligned() -> None:
    stream = io.StringIO()
    printer = LogPrinter(stream)
    printer.announce("Prefill.0")
    printer.line("Api.0", "hello [bold]")
    printer.line("Prefill.0", "hi")
    printer.close()
    printer.close()
    assert stream.getvalue() == "Api.0     | hello [bold]\nPrefill.0 | hi\n"


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    printer = LogPrinter(stream)
    printer.line("Api.0", "[not markup] \x1b[31mred\x1b[0m")
    printer.close()
    assert "\x1b[36mApi.0 |\x1b[0m [not markup] \x1b[31mred" in stream.getvalue()


def test_a_reader_that_is_gone_does_not_matter() -> None:
    stream = io.StringIO()
    printer = LogPrinter(stream)
    printer.line("Api.0", "somebody hears this")
    stream.close()
    printer.line("Api.0", "nobody hears this")
    printer.close()


def test_a_reader_that_is_asleep_blocks_nobody_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Paused(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.is_writing, self.may_go_on = threading.Event(), threading.Event()
            self.has_caught_up = threading.Event()

        def write(self, text: str) -> int:
            self.is_writing.set()
            self.may_go_on.wait()
            if text == "A | 2\n":
                self.has_caught_up.set()
            return super().write(text)

    monkeypatch.setattr(logs, "NUM_QUEUED_LINES", 2)
    stream = Paused()
    printer = LogPrinter(stream)
    printer.line("A", "0")
    stream.is_writing.wait()
    for number in range(1, 6):
        printer.line("A", str(number))
    stream.may_go_on.set()
    stream.has_caught_up.wait()
    printer.line("A", "6")
    printer.close()
    assert stream.getvalue().splitlines() == [
        "A | 0",
        "A | 1",
        "A | 2",
        "A | [3 lines were dropped]",
        "A | 6",
    ]
