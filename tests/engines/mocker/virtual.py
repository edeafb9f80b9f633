"""A core in virtual time: requests at their moments, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dynamo_sdk.engines.mocker import MockerConfig, MockerCore, StepResult, build_cores
from dynamo_sdk.engines.stateless import TICKET
from dynamo_sdk.types import FinishReason, GenerateRequest, Role, SamplingParams, pack_tokens


def prefill_ms(num_tokens: int) -> float:
    return 4.209989e-7 * num_tokens**2 + 1.518344e-2 * num_tokens + 16.50142


def decode_ms(num_tokens: int, num_capacity_tokens: int = 16384 * 64) -> float:
    share = num_tokens / num_capacity_tokens
    return -25.74 * share**2 + 54.01 * share + 5.74


def new_core(**settings: object) -> MockerCore:
    (core,) = build_cores(".", MockerConfig(**settings))  # type: ignore[arg-type]
    return core


def prompt(num_tokens: int, *, first: int = 0) -> list[int]:
    """``num_tokens`` ids; prompts whose ``first`` differs share no block."""
    return [first * 1_000_000 + index for index in range(num_tokens)]


def ask(
    request_id: str,
    tokens: Sequence[int],
    max_tokens: int = 1,
    *,
    role: Role = Role.AGGREGATED,
    **more: object,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        model="m",
        prompt=pack_tokens(tokens),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        role=role,
        **more,  # type: ignore[arg-type]
    )


def decode_leg(request_id: str, tokens: Sequence[int], generated: int, max_tokens: int) -> GenerateRequest:
    return ask(
        request_id,
        tokens,
        max_tokens,
        role=Role.DECODE,
        generated=pack_tokens([generated]),
        kv_transfer=TICKET,
    )


@dataclass
class Life:
    """Times in milliseconds of virtual time."""

    arrival_ms: float
    token_ms: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    transfer_ms: float = 0.0

    @property
    def ttft_ms(self) -> float:
        return self.token_ms[0] - self.arrival_ms

    @property
    def gaps_ms(self) -> list[float]:
        return [after - before for before, after in zip(self.token_ms, self.token_ms[1:], strict=False)]


def run(
    core: MockerCore,
    arrivals: Iterable[tuple[float, GenerateRequest]],
    *,
    steps: list[StepResult] | None = None,
) -> dict[str, Life]:
    """Drive ``core`` until nothing is left. ``arrivals``: (milliseconds, request), in order."""
    pending = list(arrivals)
    lives: dict[str, Life] = {}
    now_s = 0.0
    while pending or core.has_requests:
        while pending and pending[0][0] / 1000 <= now_s:
            at_ms, request = pending.pop(0)
            core.add(request, at_ms / 1000)
            lives[request.request_id] = Life(at_ms)
        result = core.step(now_s)
        if result is None:
            moments = [at_ms / 1000 for at_ms, _ in pending[:1]]
            if core.next_transfer_s is not None:
                moments.append(core.next_transfer_s)
            assert moments, "requests are left and nothing will ever happen"
            now_s = min(moments)
            continue
        if steps is not None:
            steps.append(result)
        for admission in result.admitted:
            lives[admission.request_id].transfer_ms = admission.transfer_s * 1000
        now_s = result.started_s + result.duration_s
        for update in result.updates:
            life = lives[update.request_id]
            life.token_ms.append(now_s * 1000)
            life.token_ids.append(update.token_id)
            life.finish_reason = update.finish_reason
            life.num_cached_tokens = update.num_cached_tokens
    return lives
