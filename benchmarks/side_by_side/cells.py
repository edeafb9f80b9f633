"""What is measured, at which sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.side_by_side.bodies import BodyKind
from benchmarks.side_by_side.loadgen import Load

FAST = 1e6
"""Engine speed-up at which the engine's own time is nothing beside the stack's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``first_rate``: the requests per second to have bodies for, until the cell has been run once."""

    name: str
    kind: BodyKind
    load: Load
    speedup: float
    first_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How much of everything. A `Cell` of the real engine's speed takes ``paced_s``."""

    repetitions: int
    warm_s: float
    measure_s: float
    paced_s: float
    ttft_s: float
    concurrencies: tuple[int, ...]
    prompts: tuple[int, ...]


FULL = Scope(
    repetitions=3,
    warm_s=1.0,
    measure_s=3.0,
    paced_s=6.0,
    ttft_s=5.0,
    concurrencies=(1, 16, 64, 256),
    prompts=(128, 2048, 16384),
)
QUICK = Scope(
    repetitions=1,
    warm_s=0.5,
    measure_s=1.5,
    paced_s=4.0,
    ttft_s=3.0,
    concurrencies=(1, 64),
    prompts=(128, 2048),
)

FIRST_RATES = {128: 3000.0, 2048: 800.0, 16384: 120.0}
MAX_CONCURRENCY_OF_LONG = 16
"""Prompts of 16k tokens take a frontend tens of milliseconds each; more at once only queue."""

NUM_PACED_STREAMS = 64


def streaming(scope: Scope) -> Iterable[Cell]:
    for concurrency in scope.concurrencies:
        yield Cell(
            name=f"stream/128/{concurrency}",
            kind=BodyKind(num_prompt_tokens=128, num_output_tokens=128, stream=True),
            load=Load(
                concurrency=concurrency, warm_s=scope.warm_s, measure_s=scope.measure_s, quick_ack=True
            ),
            speedup=FAST,
            first_rate=800.0,
        )


def whole(scope: Scope) -> Iterable[Cell]:
    for num_prompt_tokens in scope.prompts:
        for concurrency in scope.concurrencies:
            if num_prompt_tokens > 4096 and concurrency > MAX_CONCURRENCY_OF_LONG:
                continue
            yield Cell(
                name=f"whole/{num_prompt_tokens}/{concurrency}",
                kind=BodyKind(num_prompt_tokens=num_prompt_tokens, num_output_tokens=1, stream=False),
                load=Load(concurrency=concurrency, warm_s=scope.warm_s, measure_s=scope.measure_s),
                speedup=FAST,
                first_rate=FIRST_RATES[num_prompt_tokens],
            )


def ttft(scope: Scope) -> Iterable[Cell]:
    for quick_ack in (False, True):
        yield Cell(
            name="ttft/128/1" + ("/quick-ack" if quick_ack else ""),
            kind=BodyKind(num_prompt_tokens=128, num_output_tokens=2, stream=True),
            load=Load(concurrency=1, warm_s=0.5, measure_s=scope.ttft_s, quick_ack=quick_ack),
            speedup=1.0,
            first_rate=60.0,
        )


def paced(scope: Scope) -> Iterable[Cell]:
    """512 tokens at 5.74 ms and more each: the streams overlap and end far apart."""
    for quick_ack in (False, True):
        yield Cell(
            name=f"paced/128/{NUM_PACED_STREAMS}" + ("/quick-ack" if quick_ack else ""),
            kind=BodyKind(num_prompt_tokens=128, num_output_tokens=512, stream=True),
            load=Load(
                concurrency=NUM_PACED_STREAMS,
                warm_s=4.0,
                measure_s=scope.paced_s,
                quick_ack=quick_ack,
                stagger_s=3.0,
            ),
            speedup=1.0,
            first_rate=60.0,
        )


def through_router(name: str, scope: Scope) -> list[Cell]:
    """The cells for one proxy, next to our frontend without it."""
    return [
        Cell(
            name=f"router/{name}/128/{concurrency}",
            kind=BodyKind(num_prompt_tokens=128, num_output_tokens=1, stream=False),
            load=Load(concurrency=concurrency, warm_s=scope.warm_s, measure_s=scope.measure_s),
            speedup=FAST,
            first_rate=FIRST_RATES[128],
        )
        for concurrency in scope.concurrencies
        if concurrency <= NUM_PACED_STREAMS
    ]


def modelled_prefill_ms(num_tokens: int) -> float:
    """The time both mockers take for ``num_tokens`` new tokens of one request."""
    return 4.209989e-7 * num_tokens**2 + 1.518344e-2 * num_tokens + 16.50142


FAMILIES = {"stream": streaming, "whole": whole, "ttft": ttft, "paced": paced}


def cells_of(families: Iterable[str], scope: Scope) -> list[Cell]:
    return [cell for family in families for cell in FAMILIES[family](scope)]
