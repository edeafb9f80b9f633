"""What a worker and its host process say to each other, over a socket pair.

A frame is four bytes of length, big-endian, and a message in msgpack. Both ends are one version of us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

LENGTH_BYTES = 4


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """An exception. ``kinds``: the names of its class and of those above; ``param``: of our own errors."""

    kinds: tuple[str, ...]
    text: str
    param: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        kinds = tuple([kind.__name__ for kind in type(error).__mro__])
        return cls(kinds, str(error), getattr(error, "param", None))


class Start(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first message. ``written``: what the deploy file says; ``ours``: what we want where the installed
    version knows it; ``events``: SGLang's ``KVEventsConfig``, of which the same is true."""

    written: dict[str, Any]
    ours: dict[str, Any]
    events: dict[str, Any]


class Generate(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """``arguments``: of ``async_generate``, but for ``rid``; ``number`` names the call from now on."""

    number: int
    arguments: dict[str, Any]


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    number: int


class LoadAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    number: int
    name: str
    path: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    number: int
    name: str


class Started(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """``num_tokens``: that KV has room for, on all ranks together. ``has_seeds``: they are not ignored."""

    context_length: int
    vocab_size: int
    page_size: int
    num_tokens: int
    dp_size: int
    has_seeds: bool


class NotStarted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    problem: Problem


class Last(msgspec.Struct, frozen=True, array_like=True):
    """What SGLang says with the last tokens. ``finish``: its ``finish_reason``; times are of its wall clock,
    0 = not said."""

    finish: dict[str, Any]
    received_s: float = 0.0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0


class Output(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """New tokens of a call. ``logprobs`` and ``top`` are lists of SGLang's ``(logprob, token, text)``."""

    number: int
    token_ids: list[int]
    num_cached_tokens: int = 0
    logprobs: list[Any] | None = None
    top: list[Any] | None = None
    last: Last | None = None


class Ended(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A call is over, and SGLang holds nothing for it."""

    number: int
    problem: Problem | None = None


class Load(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """``num_used_tokens``: of KV, on all ranks together."""

    num_used_tokens: int


ToHost = Start | Generate | Abort | LoadAdapter | UnloadAdapter
FromHost = Started | NotStarted | Output | Ended | Load

MessageT = TypeVar("MessageT")


class Pipe(asyncio.Protocol, Generic[MessageT]):
    """One end. What is sent in one turn of the event loop leaves in one piece."""

    def __init__(
        self, kind: Any, on_message: Callable[[MessageT], None], on_lost: Callable[[], None]
    ) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._unsent = bytearray()

    def send(self, message: object) -> None:
        """Nothing happens when the other end is gone."""
        data = self._encode(message)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += len(data).to_bytes(LENGTH_BYTES, "big")
        self._unsent += data

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        data, self._unsent = self._unsent, bytearray()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, too, but no subclass

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start, end = 0, len(received)
        while end - start >= LENGTH_BYTES:
            body = start + LENGTH_BYTES
            stop = body + int.from_bytes(received[start:body], "big")
            if stop > end:
                break
            with memoryview(received) as view:
                message = self._decode(view[body:stop])
            start = stop
            self._on_message(message)
        del received[:start]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_lost()
