"""A streamed answer, read as it arrives: bytes and the moment of their arrival in, one record out."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from .record import ErrorKind, RequestRecord
from .workload import Ask

MAX_EVENT_BYTES = 16 << 20
"""A longer event is an error: the memory of a client is bounded."""
_MAX_ERROR_BYTES = 16 << 10
_MAX_MESSAGE_CHARS = 300


class EventReader:
    """Cuts a body into the data of its server-sent events. Raises ``ValueError`` past ``MAX_EVENT_BYTES``."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completes. Lines may end in ``\\n`` or ``\\r\\n``."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif self._data and not line:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_output(self) -> bool:
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_DONE = b"[DONE]"


class Answer:
    """What one request got, so far. Give it ``status``, then ``body`` until ``end``.

    ``sent_s``: when its timing starts, on the clock of all moments given; ``origin_s``: when the load
    started; ``gaps_s`` collects the times between chunks that carry output, over many requests.
    """

    def __init__(self, ask: Ask, *, sent_s: float, origin_s: float, gaps_s: array[float] | None) -> None:
        self.ask = ask
        self.num_chunks = 0
        self._sent_s = sent_s
        self._origin_s = origin_s
        self._gaps_s = gaps_s
        self._events = EventReader()
        self._status = 0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._max_gap_s: float | None = None
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None
        self._error: ErrorKind | None = None
        self._message = b""

    def status(self, status: int) -> None:
        """The response's status line."""
        self._status = status
        if status != 200:
            self._error = ErrorKind.HTTP

    def body(self, now_s: float, piece: bytes) -> None:
        """More of the body; what is wrong with it ends up in the record."""
        if self._error is not None:
            self._message += piece[: _MAX_ERROR_BYTES - len(self._message)]
            return
        try:
            for event in self._events.feed(piece):
                if event != _DONE:
                    self._chunk(now_s, _decode(event), event)
        except ValueError as error:  # of msgspec, too
            self.fail(ErrorKind.MALFORMED, str(error))

    def _chunk(self, now_s: float, chunk: _Chunk, event: bytes) -> None:
        if chunk.error is not None:
            self.fail(ErrorKind.STREAM, event[:_MAX_ERROR_BYTES].decode(errors="replace"))
        if chunk.usage is not None:
            self._usage = chunk.usage
        has_output = False
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self._finish_reason = choice.finish_reason
            has_output = (
                has_output
                or choice.has_output
                or (
                    # An answer whose tokens have no text still has a first moment.
                    choice.finish_reason is not None and self._first_s is None
                )
            )
        if not has_output:
            return
        self.num_chunks += 1
        if self._first_s is None:
            self._first_s = now_s
        else:
            gap_s = now_s - self._last_s
            if self._max_gap_s is None or gap_s > self._max_gap_s:
                self._max_gap_s = gap_s
            if self._gaps_s is not None:
                self._gaps_s.append(gap_s)
        self._last_s = now_s

    def fail(self, kind: ErrorKind, message: str) -> None:
        """The request failed; the first failure counts."""
        if self._error is None:
            self._error = kind
            self._message = message.encode()

    def end(self, now_s: float, *, is_warmup: bool = False) -> RequestRecord:
        """The record of the request, which is over. An answer without any output is an error."""
        usage = self._usage
        if self._first_s is None:
            self.fail(ErrorKind.EMPTY, "the answer has no output")
        ask = self.ask
        cached = usage.prompt_tokens_details if usage else None
        kind = self._error
        return RequestRecord(
            index=ask.index,
            due_s=ask.due_s,
            sent_s=self._sent_s - self._origin_s,
            ttft_s=None if self._first_s is None else self._first_s - self._sent_s,
            e2e_s=now_s - self._sent_s,
            num_chunks=self.num_chunks,
            max_gap_s=self._max_gap_s,
            num_asked_input_tokens=ask.num_input_tokens,
            num_asked_output_tokens=ask.num_output_tokens,
            num_input_tokens=usage.prompt_tokens if usage else None,
            num_cached_tokens=cached.cached_tokens if cached else None,
            num_output_tokens=usage.completion_tokens if usage else None,
            finish_reason=self._finish_reason,
            error=None if kind is None else f"http_{self._status}" if kind is ErrorKind.HTTP else kind.value,
            message=None if kind is None else self._message.decode(errors="replace")[:_MAX_MESSAGE_CHARS],
            is_warmup=is_warmup,
        )
