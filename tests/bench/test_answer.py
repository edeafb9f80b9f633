from __future__ import annotations

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.bench import answer as module
from dynamo_sdk.bench.answer import Answer, EventReader
from dynamo_sdk.bench.workload import Ask

ASK = Ask(index=3, due_s=0.25, num_input_tokens=10, num_output_tokens=4)
WORDS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(**fields: object) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def finish(reason: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


def usage(num_input: int, num_output: int, **more: object) -> bytes:
    return event(choices=[], usage={"prompt_tokens": num_input, "completion_tokens": num_output, **more})


def begun(gaps_s: array[float] | None = None) -> Answer:
    answer = Answer(ASK, sent_s=100.5, origin_s=100.0, gaps_s=gaps_s)
    answer.status(200)
    return answer


@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.data(),
)
def test_events_do_not_depend_on_how_the_body_was_cut(
    events: list[list[str]], newline: str, data: st.DataObject
) -> None:
    text = "".join(
        ": a comment" + newline + "".join(f"data: {line}{newline}" for line in lines) + newline
        for lines in events
    )
    body = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    reader = EventReader()
    found = [one for piece in pieces for one in reader.feed(piece)]
    assert found == ["\n".join(lines).encode() for lines in events]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENT_BYTES", 8)
    answer = begun()
    answer.body(101.0, b"data: " + b"x" * 9)
    assert answer.end(101.0).error == "malformed"


def test_times_run_from_the_sending_to_the_first_output_and_the_last_byte() -> None:
    gaps_s = array("d")
    answer = begun(gaps_s)
    answer.body(100.6, delta(role="assistant", content=""))
    answer.body(101.0, delta(content="a"))
    answer.body(101.5, delta(content="b") + delta(content="c"))
    answer.body(102.5, finish("length") + usage(12, 5, prompt_tokens_details={"cached_tokens": 8}))
    answer.body(102.5, b"data: [DONE]\n\n")
    record = answer.end(103.0)
    assert (record.index, record.due_s, record.sent_s, record.lag_s) == (3, 0.25, 0.5, 0.25)
    assert (record.ttft_s, record.e2e_s, record.max_gap_s) == (0.5, 2.5, 0.5)
    assert list(gaps_s) == [0.5, 0.0]
    assert record.num_chunks == 3
    assert (record.num_input_tokens, record.num_cached_tokens, record.num_output_tokens) == (12, 8, 5)
    assert record.itl_s == (2.5 - 0.5) / 4, "tokens are counted by the server, not by chunks"
    assert (record.finish_reason, record.error, record.message) == ("length", None, None)


@pytest.mark.parametrize(
    "first",
    [
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(tool_calls=[{"index": 0}]),
        event(choices=[{"index": 0, "text": "a", "finish_reason": None}]),
        finish("stop"),
    ],
)
def test_what_counts_as_output(first: bytes) -> None:
    answer = begun()
    answer.body(101.0, first)
    record = answer.end(102.0)
    assert (record.ttft_s, record.num_chunks, record.error) == (0.5, 1, None)
    assert (record.num_output_tokens, record.itl_s) == (None, None)


def test_an_answer_without_output_is_an_error() -> None:
    answer = begun()
    answer.body(101.0, delta(role="assistant") + delta(tool_calls=[]) + b"data: [DONE]\n\n")
    record = answer.end(101.0)
    assert (record.error, record.ttft_s) == ("empty", None)


def test_an_error_status_keeps_its_message() -> None:
    answer = Answer(ASK, sent_s=0.0, origin_s=0.0, gaps_s=None)
    answer.status(429)
    answer.body(0.5, b'{"error": "full"}')
    record = answer.end(0.5)
    assert (record.error, record.message) == ("http_429", '{"error": "full"}')


def test_an_error_event_fails_a_stream_that_began() -> None:
    answer = begun()
    answer.body(101.0, delta(content="a") + event(error={"message": "gone"}))
    record = answer.end(101.0)
    assert record.error == "stream"
    assert "gone" in (record.message or "")


def test_an_error_field_of_null_is_none() -> None:
    answer = begun()
    answer.body(101.0, event(choices=[{"index": 0, "text": "a"}], error=None))
    assert answer.end(101.0).error is None


def test_what_is_no_json_is_malformed() -> None:
    answer = begun()
    answer.body(101.0, b"data: {]\n\n")
    assert answer.end(101.0).error == "malformed"
