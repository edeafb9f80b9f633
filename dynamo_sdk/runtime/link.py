"""A session on a channel: frames in, events out, one write per event-loop tick.

Whatever the streams of one connection have ready in a tick travels in one message.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod

from dynamo_sdk.errors import ConnectionLost, WireError

from .clock import Clock
from .network import Channel
from .session import NONCE_BYTES, Event, Ready, Session, Side
from .wire import FrameSplitter

HANDSHAKE_TIMEOUT_S = 10.0
HANDSHAKE_FRAME_BYTES = 256
"""A peer that has not proved anything yet must not make us hold more than this."""


class Link(ABC):
    """What the client's and the server's end of a connection share."""

    def __init__(self, side: Side, secret: str | None, clock: Clock) -> None:
        self.session = Session(side, os.urandom(NONCE_BYTES), secret)
        self.clock = clock
        self.channel: Channel | None = None
        self._splitter = FrameSplitter(max_bytes=HANDSHAKE_FRAME_BYTES)
        self._is_flush_scheduled = False

    def start(self, channel: Channel) -> None:
        self.channel = channel
        self.flush_soon()

    def flush_soon(self) -> None:
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if self.channel is not None and self.session.has_output:
            self.channel.write(self.session.take_output())

    def on_data(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                event = self.session.receive(body)
                if isinstance(event, Ready):
                    self._splitter.max_bytes = self.session.max_frame_bytes
                if event is not None:
                    self.handle(event)
        except WireError as error:
            self.break_off(error)
        if self.session.has_output:
            self.flush_soon()

    def on_close(self) -> None:
        self.channel = None
        self.lost(ConnectionLost("the connection was closed by the peer"))

    def break_off(self, error: WireError) -> None:
        """End the connection because of ``error``; what is queued is still written."""
        self._flush()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()
        self.lost(error)

    @abstractmethod
    def handle(self, event: Event) -> None: ...

    @abstractmethod
    def lost(self, error: WireError) -> None:
        """The connection is over. May be called more than once."""
