"""``StepSource``: SGLang's record of each forward pass, one publisher per data-parallel rank."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
import zmq
import zmq.asyncio

_log = logging.getLogger(__name__)


class Requests(msgspec.Struct, frozen=True):
    """In one step, or waiting at its end; ``sum_..._tokens`` over all of them."""

    num_prefill_requests: int = 0
    sum_prefill_tokens: int = 0
    num_decode_requests: int = 0
    sum_decode_kv_tokens: int = 0


class Step(msgspec.Struct, frozen=True):
    """The part of SGLang's own ``ForwardPassMetrics`` that we read; ``wall_time`` in seconds."""

    wall_time: float
    scheduled_requests: Requests
    queued_requests: Requests

    @property
    def is_idle(self) -> bool:
        """SGLang says once a second that it lives."""
        scheduled = self.scheduled_requests
        return not (scheduled.num_prefill_requests or scheduled.num_decode_requests)


_decode = msgspec.msgpack.Decoder(Step).decode


class StepSource:
    """Calls ``listener`` on the event loop, from ``start`` until ``close``."""

    def __init__(self, endpoint: str, listener: Callable[[Step], None]) -> None:
        """``endpoint``: SGLang adds a dot and the rank."""
        self._endpoint = endpoint
        self._listener = listener
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def start(self, num_ranks: int) -> None:
        self._context = zmq.asyncio.Context()
        for rank in range(num_ranks):
            reading = self._read(self._context, f"{self._endpoint}.{rank}")
            self._tasks.append(asyncio.create_task(reading, name=f"steps-{rank}"))

    async def close(self) -> None:
        """Idempotent; also without a start."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context, self._context = self._context, None
        if context is not None:
            context.destroy(linger=0)

    async def _read(self, context: zmq.asyncio.Context, endpoint: str) -> None:
        with context.socket(zmq.SUB) as steps:
            steps.setsockopt_string(zmq.SUBSCRIBE, "")
            steps.connect(endpoint)
            while True:
                step = step_of(await steps.recv_multipart())
                if step is not None and not step.is_idle:
                    self._listener(step)


def step_of(frames: Sequence[bytes]) -> Step | None:
    """The message is the last frame. None, with a warning, for what cannot be read."""
    try:
        return _decode(frames[-1])
    except msgspec.MsgspecError as error:
        _log.warning("a step of SGLang is left out: %s", error)
        return None
