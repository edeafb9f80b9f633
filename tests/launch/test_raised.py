from __future__ import annotations

import pytest

from dynamo_sdk.launch.raised import MAX_KEPT, RaisedExceptions, raised_in


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ValueError: no room", "ValueError: no room"),
        ("KeyError", "KeyError"),
        ("torch.OutOfMemoryError: out of memory (16 GiB)", "torch.OutOfMemoryError: out of memory (16 GiB)"),
        ("[2026-11-21 22:29:22 TP0] ValueError: no room", "ValueError: no room"),
        ("(Worker pid=7) ERROR 11-21 22:28:45 [core.py:953] a.b.OneError: [x] no", "a.b.OneError: [x] no"),
        ("(Worker pid=7) ERROR 11-21 22:28:45 [executor.py:953]     raise ValueError: no", None),
        ("    raise ValueError(", None),
        ("  ValueError: indented", None),
        ("an Error: it says", None),
        ("(Worker pid=7) ERROR 11-21 22:28:45 [executor.py:953] WorkerProc failed to start.", None),
        ("", None),
    ],
)
def test_the_last_line_of_a_traceback_is_known(line: str, text: str | None) -> None:
    assert raised_in(line) == text


def test_exceptions_are_told_once_in_their_order_and_not_again_when_they_are_shown() -> None:
    raised = RaisedExceptions()
    for line in ("[1] OSError: cause", "noise", "Exception: see above", "OSError: cause"):
        raised.feed(line)
    assert raised.not_in([]) == ["OSError: cause", "Exception: see above"]
    assert raised.not_in(["[2] Exception: see above"]) == ["OSError: cause"]
    raised.clear()
    assert raised.not_in([]) == []


def test_the_first_ones_are_kept() -> None:
    raised = RaisedExceptions()
    for number in range(2 * MAX_KEPT):
        raised.feed(f"ValueError: {number}")
    assert raised.not_in([]) == [f"ValueError: {number}" for number in range(MAX_KEPT)]
