"""One benchmark from options to report: prepares, finds the model, drives the load, listens to Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from dynamo_sdk.errors import ConfigError, ConnectionLost
from dynamo_sdk.runtime.clock import SystemClock

from .driver import Driver
from .http1 import HttpClient, get
from .load import Load, LoadLimits
from .prompts import PromptSource
from .report import Report, Targets, make_report
from .target import Endpoint, RequestWriter, Target
from .words import COMMON_WORDS, one_token_words
from .workload import Ask, even_times, poisson_times, read_trace, same_size, trace_times, traced

DEFAULT_DURATION_S = 30.0
"""How long a load lasts that has no other end."""


class Arrivals(StrEnum):
    POISSON = "poisson"
    EVEN = "even"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to run. ``concurrency`` and ``rate`` exclude each other; with neither, a trace sets the times,
    and without a trace one request is under way. ``num_warmup`` None = one per lane."""

    target: Target
    endpoint: Endpoint
    model: str | None
    concurrency: int | None
    rate: float | None
    arrivals: Arrivals
    trace: Path | None
    speed: float
    block_tokens: int
    max_requests: int | None
    duration_s: float | None
    num_warmup: int | None
    num_input_tokens: int
    num_output_tokens: int
    seed: int
    tokenizer: Path | None
    extra: dict[str, Any]
    timeout_s: float
    targets: Targets

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.rate is not None:
            raise ConfigError(
                "--concurrency and --rate exclude each other: one is closed loop, the other open"
            )
        if self.speed != 1 and (self.trace is None or self._lanes is not None or self.rate is not None):
            raise ConfigError(
                "--speed plays the times of a --trace; it goes with neither --concurrency nor --rate"
            )

    @property
    def _lanes(self) -> int | None:
        if self.concurrency is None and self.rate is None and self.trace is None:
            return 1
        return self.concurrency

    def limits(self) -> LoadLimits:
        is_endless = self.trace is None and self.max_requests is None and self.duration_s is None
        return LoadLimits(
            concurrency=self._lanes,
            max_requests=self.max_requests,
            duration_s=DEFAULT_DURATION_S if is_endless else self.duration_s,
            num_warmup=(self._lanes or 0) if self.num_warmup is None else self.num_warmup,
            timeout_s=self.timeout_s,
        )

    def asks(self) -> Iterator[Ask]:
        """What will be asked, in order. Reads the trace: raises ``ConfigError``."""
        times: Iterable[float | None]
        if self.rate is not None:
            is_even = self.arrivals is Arrivals.EVEN
            times = (
                even_times(self.rate) if is_even else poisson_times(self.rate, Random(f"{self.seed}:times"))
            )
        else:
            times = repeat(None)
        if self.trace is None:
            return same_size(self.num_input_tokens, self.num_output_tokens, times)
        rows = read_trace(self.trace)
        if self._lanes is None and self.rate is None:
            times = trace_times(rows, self.speed)
        return traced(rows, times)

    def prompts(self) -> PromptSource:
        """Texts for the asks. Reads the tokenizer: raises ``ConfigError``."""
        words = COMMON_WORDS
        if self.tokenizer is not None:
            from dynamo_sdk.preprocess import Tokenizer

            words = one_token_words(Tokenizer.load(self.tokenizer))
        return PromptSource(words, seed=self.seed, block_tokens=self.block_tokens)

    def described(self, model: str) -> dict[str, str | int | float | None]:
        """The settings that a report carries: nothing secret, no path of a machine."""
        is_traced = self.trace is not None
        return {
            "url": self.target.url,
            "endpoint": self.endpoint.value,
            "model": model,
            "concurrency": self._lanes,
            "rate": self.rate,
            "arrivals": None if self.rate is None else self.arrivals.value,
            "trace": self.trace.name if self.trace is not None else None,
            "speed": self.speed if is_traced else None,
            "input_tokens": None if is_traced else self.num_input_tokens,
            "output_tokens": None if is_traced else self.num_output_tokens,
            "seed": self.seed,
            "extra": msgspec.json.encode(self.extra).decode(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``load`` holds the record of every request."""

    report: Report
    load: Load


async def run_bench(options: BenchOptions, observe: Callable[[Load], None] | None = None) -> Outcome:
    """Run it. Ctrl-C and SIGTERM end it early, with a report; a second one is not caught.

    Raises ``ConfigError`` for what the options name wrongly, ``ConnectionLost`` where no server answers.
    """
    asks, prompts = options.asks(), options.prompts()
    model = await find_model(options.target, options.model)
    writer = RequestWriter(
        options.target, endpoint=options.endpoint, model=model, prompts=prompts, extra=options.extra
    )
    clock = SystemClock()
    client = HttpClient(options.target, clock)
    _allow_many_sockets()
    driver = Driver(
        client,
        clock,
        options.limits(),
        write=writer.write,
        cpu_s=time.process_time,
        observe=observe,
    )
    gc.collect()
    gc.freeze()  # words and modules live as long as we do: no collection has to look at them
    with _Interrupts(driver.stop):
        load = await driver.run(asks)
    gc.unfreeze()
    client.close()
    report = make_report(
        load,
        settings=options.described(model),
        targets=options.targets,
        num_connections=client.num_connections,
    )
    return Outcome(report=report, load=load)


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


async def find_model(target: Target, wanted: str | None) -> str:
    """The only model that the server lists, or ``wanted``, if it is listed or the server has no list.

    Raises ``ConfigError`` and ``ConnectionLost``.
    """
    answer = await get(target, "/models")
    if not answer.code:
        raise ConnectionLost(f"no server answers at {target.url}: {answer.failure}")
    if answer.code in (401, 403):
        raise ConfigError(f"{target.url} refuses the request with {answer.code}; is --api-key right?")
    try:
        listed = msgspec.json.decode(answer.content, type=_ModelList) if answer.code == 200 else None
    except msgspec.DecodeError:
        listed = None
    if listed is None:
        if wanted is not None:
            return wanted
        raise ConfigError(f"{target.url}/models lists no models (HTTP {answer.code}); name one with --model")
    names = [card.id for card in listed.data]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        asked = "name one with --model" if wanted is None else f"there is no {wanted!r}"
        raise ConfigError(f"--model: {asked} (models: {', '.join(names) or 'none'})")
    return wanted


class _Interrupts:
    """While open, the first SIGINT or SIGTERM calls ``stop`` and gives the signals back to their owner."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        for number in self._SIGNALS:
            self._loop.add_signal_handler(number, self._caught)

    def __exit__(self, *error: object) -> None:
        for number in self._SIGNALS:
            self._loop.remove_signal_handler(number)

    def _caught(self) -> None:
        self.__exit__()
        self._stop()


def _allow_many_sockets() -> None:
    """Up to the hard limit: an open load may have thousands of requests under way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
