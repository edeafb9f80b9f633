"""Token ids to text, one step at a time, never splitting a character.

The deltas of a stream add up to what decoding all its ids at once gives. A character whose bytes are
spread over several tokens appears with the last of them; bytes that never become one appear as U+FFFD.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from .token_bytes import LeadingSpace

_REPLACEMENT = "\ufffd"
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(ABC):
    """One stream's state. Ids the vocabulary does not have add nothing."""

    __slots__ = ()

    @abstractmethod
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; may be empty."""

    @abstractmethod
    def finish(self) -> str:
        """What is left of an unfinished character."""


class TableDetokenizer(Detokenizer):
    """For decoders that concatenate bytes: a table and an incremental UTF-8 decoder.

    ``table`` must be as long as the largest id it may see; ids beyond add nothing. With ``at_start``
    the first token loses its leading space where the tokenizer's decoder says so.
    """

    __slots__ = ("_is_at_start", "_is_between_characters", "_leading", "_table", "_utf8")

    def __init__(self, table: Sequence[bytes], *, leading: LeadingSpace = LeadingSpace.KEEP) -> None:
        self._table = table
        self._utf8 = _utf8_decoder("replace")
        self._leading = leading
        self._is_at_start = leading is not LeadingSpace.KEEP
        self._is_between_characters = True

    def push(self, token_ids: Sequence[int]) -> str:
        if self._is_at_start:
            return self._push_first(token_ids)
        table = self._table
        try:
            if len(token_ids) == 1:
                piece = table[token_ids[0]]
            else:
                piece = b"".join([table[token_id] for token_id in token_ids])
        except IndexError:
            piece = b"".join([table[token_id] for token_id in token_ids if token_id < len(table)])
        return self._decode(piece)

    def _decode(self, piece: bytes) -> str:
        if self._is_between_characters:  # nearly always, and then a plain decode is four times as fast
            try:
                return piece.decode()
            except UnicodeDecodeError:
                pass
        text = self._utf8.decode(piece)
        self._is_between_characters = not self._utf8.getstate()[0]
        return text

    def _push_first(self, token_ids: Sequence[int]) -> str:
        for index, token_id in enumerate(token_ids):
            piece = self._table[token_id] if token_id < len(self._table) else b""
            if piece:
                drop_all = self._leading is LeadingSpace.DROP_IN_FIRST_TOKEN
                self._is_at_start = False
                piece = piece.replace(b" ", b"") if drop_all else piece.removeprefix(b" ")
                return self._decode(piece) + self.push(token_ids[index + 1 :])
        return ""

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer(Detokenizer):
    """For any other decoder: decode a short window of ids again and emit what it grew by.

    The window starts one emitted piece back, so that the decoder sees a neighbour to its left and treats
    spaces as it would in the whole text. ``after``: the end of the prompt that this text continues.
    """

    __slots__ = ("_decode", "_ids", "_num_emitted", "_skip")

    MAX_PENDING = 8
    """Tokens that may wait for the rest of a character; UTF-8 needs no more than four."""

    def __init__(
        self, decode: Callable[[list[int]], str], *, skip: frozenset[int], after: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._skip = skip
        self._ids = [token_id for token_id in after if token_id not in skip]
        self._num_emitted = len(self._ids)  # how many of ``_ids`` are already part of the emitted text

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids if token_id not in self._skip])

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        emitted = self._decode(self._ids[: self._num_emitted]) if self._num_emitted else ""
        window = self._decode(self._ids)
        num_pending = len(self._ids) - self._num_emitted
        if window.endswith(_REPLACEMENT) and num_pending < self.MAX_PENDING:
            return ""
        delta = window[len(emitted) :]
        if delta:
            self._ids = self._ids[self._num_emitted :]
            self._num_emitted = len(self._ids)
        return delta

    def finish(self) -> str:
        emitted = self._decode(self._ids[: self._num_emitted]) if self._num_emitted else ""
        delta = self._decode(self._ids)[len(emitted) :] if self._ids else ""
        self._num_emitted = len(self._ids)
        return delta
