from __future__ import annotations

import io
import itertools

from hypothesis import given
from hypothesis import strategies as st

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
    assert stream.getvalue() == "Api.0     | hello [bold]\nPrefill.0 | hi\n"


def test_a_terminal_gets_colours() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    LogPrinter(stream).line("Api.0", "[not markup] \x1b[31mred\x1b[0m")
    assert "Api.0 |" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()


def test_a_reader_that_is_gone_does_not_matter() -> None:
    stream = io.StringIO()
    printer = LogPrinter(stream)
    stream.close()
    printer.line("Api.0", "nobody hears this")
    printer.line("Api.0", "nor this")
