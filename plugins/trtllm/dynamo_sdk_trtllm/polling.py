"""Reading what TensorRT-LLM must be asked for: KV events and statistics."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

_log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0
"""How long one question may wait for an answer inside TensorRT-LLM."""
PAUSE_S = 0.05
PAUSE_AFTER_FAILURE_S = 5.0


async def poll(
    ask: Callable[..., AsyncIterable[Any]], take: Callable[[Any], None], begin: asyncio.Event
) -> None:
    """From ``begin`` on, for ever: ``take`` each thing that ``ask(timeout=)`` gives. Whether an answer waits
    for news or comes at once differs between versions; a pause after an empty one covers both."""
    await begin.wait()
    while True:
        pause_s = PAUSE_S
        try:
            async for answer in ask(timeout=ASK_TIMEOUT_S):
                pause_s = 0.0
                for item in answer if isinstance(answer, list) else [answer]:
                    _take(item, take)
        except Exception as error:
            _log.warning("TensorRT-LLM gave no answer: %s: %s", type(error).__name__, error)
            pause_s = PAUSE_AFTER_FAILURE_S
        await asyncio.sleep(pause_s)


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End tasks that poll. A wait with a time-out, which TensorRT-LLM's answers are, can swallow a
    cancellation that comes together with news: so ask again."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=PAUSE_S)


def _take(item: Any, take: Callable[[Any], None]) -> None:
    try:
        take(json.loads(item) if isinstance(item, str) else item)
    except ValueError as error:
        _log.warning("something that TensorRT-LLM said is left out: %s", error)
