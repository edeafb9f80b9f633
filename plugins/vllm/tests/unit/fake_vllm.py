"""Two vLLMs without a model: one as it was, one as it is. What a version does not know is a ``TypeError``.

Tokens are a function of the prompt and the position, so that outputs can be compared; sampling changes
nothing. They publish no KV events.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
from anyio import Path

CONTEXT = 256


@dataclass
class KVEventsConfig:
    enable_kv_cache_events: bool
    publisher: str
    endpoint: str
    replay_endpoint: str | None = None


@dataclass
class KVTransferConfig:
    kv_connector: str
    kv_role: str
    kv_connector_extra_config: dict[str, Any] = field(default_factory=dict)
    kv_connector_module_path: str | None = None
    kv_load_failure_policy: str = "fail"


@dataclass
class OldEngineArgs:
    model: str
    enable_prefix_caching: bool | None = None
    disable_log_stats: bool = False
    kv_events_config: KVEventsConfig | None = None
    kv_transfer_config: KVTransferConfig | None = None
    max_num_seqs: int = 8


@dataclass
class NewEngineArgs(OldEngineArgs):
    served_model_name: str | None = None
    scheduling_policy: str = "fcfs"
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16


@dataclass(kw_only=True)
class OldSamplingParams:
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: str = "cumulative"
    extra_args: dict[str, Any] | None = None


class StatLoggerBase:
    pass


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class OldAsyncLLM:
    """``generate`` knows neither ranks nor rendered prompts; statistics come in two arguments."""

    def __init__(self, args: OldEngineArgs, stat_loggers: list[Any]) -> None:
        self.args = args
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=CONTEXT),
            cache_config=SimpleNamespace(block_size=16, num_gpu_blocks=100),
            parallel_config=SimpleNamespace(data_parallel_size=1),
            scheduler_config=SimpleNamespace(policy=getattr(args, "scheduling_policy", "fcfs")),
            lora_config=SimpleNamespace(max_loras=args.max_loras)
            if getattr(args, "enable_lora", False)
            else None,
        )
        self.errored = False
        self.is_shut_down = False
        self._running: dict[str, asyncio.Event] = {}
        self._loggers = [make(self.vllm_config, 0) for make in stat_loggers]
        self.asked: list[dict[str, Any]] = []

    @classmethod
    def from_engine_args(cls, engine_args: OldEngineArgs, stat_loggers: list[Any] | None = None) -> Any:
        assert isinstance(engine_args.kv_events_config, KVEventsConfig)
        return cls(engine_args, stat_loggers or [])

    def generate(
        self,
        prompt: dict[str, Any],
        sampling_params: OldSamplingParams,
        request_id: str,
        lora_request: Any = None,
        priority: int = 0,
    ) -> AsyncIterator[Any]:
        assert set(prompt) <= {"prompt_token_ids", "cache_salt"}
        assert priority == 0, "the policy is first come, first served"
        return self._run(prompt["prompt_token_ids"], sampling_params, request_id, lora_request)

    async def _run(
        self, prompt: list[int], params: OldSamplingParams, request_id: str, lora: Any
    ) -> AsyncIterator[Any]:
        assert params.output_kind == "delta"
        self.asked.append({"lora": lora, "params": params})
        aborted = self._running[request_id] = asyncio.Event()
        known = list(prompt)
        try:
            for number in range(params.max_tokens):
                await asyncio.sleep(0)
                if aborted.is_set():
                    yield self._output([], "abort", params)
                    return
                weight = 1 + crc32(lora.lora_path.encode()) % 49 if lora is not None else 0
                token = (sum(known) * 31 + len(known) + (params.seed or 0) + weight) % 50 + 10
                known.append(token)
                is_stop = token in (params.stop_token_ids or ()) and number + 1 >= params.min_tokens
                is_full = number + 1 == params.max_tokens or len(known) >= CONTEXT
                reason = "stop" if is_stop else "length" if is_full else None
                self._report(num_prefilled=0 if number else len(prompt))
                yield self._output([token], reason, params)
                if reason is not None:
                    return
        finally:
            del self._running[request_id]

    def _output(self, token_ids: list[int], reason: str | None, params: OldSamplingParams) -> Any:
        logprobs = None
        if params.logprobs is not None:
            entry = {token: SimpleNamespace(logprob=-0.1) for token in token_ids}
            logprobs = [entry | {1: SimpleNamespace(logprob=-3.0)} for _ in token_ids]
        completion = SimpleNamespace(token_ids=token_ids, logprobs=logprobs, finish_reason=reason)
        transfer = (params.extra_args or {}).get("kv_transfer_params", {})
        ticket = {"remote_request_id": id(params)} if transfer.get("do_remote_decode") and reason else None
        return SimpleNamespace(outputs=[completion], finished=reason is not None, kv_transfer_params=ticket)

    def _report(self, *, num_prefilled: int) -> None:
        scheduler, iteration = statistics(len(self._running), num_prefilled)
        for logger in self._loggers:
            logger.record(scheduler, iteration)

    async def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            if request_id in self._running:
                self._running[request_id].set()

    async def is_sleeping(self) -> bool:
        return False

    def shutdown(self) -> None:
        self.is_shut_down = True


class NewAsyncLLM(OldAsyncLLM):
    """Ranks, rendered prompts, and statistics with more to them."""

    def generate(  # type: ignore[override]
        self,
        prompt: dict[str, Any],
        sampling_params: OldSamplingParams,
        request_id: str,
        *,
        lora_request: Any = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        kv_hints: object = None,
    ) -> AsyncIterator[Any]:
        assert prompt["type"] == "token"
        return self._run(prompt["prompt_token_ids"], sampling_params, request_id, lora_request)

    def _report(self, *, num_prefilled: int) -> None:
        scheduler, iteration = statistics(len(self._running), num_prefilled)
        for logger in self._loggers:
            logger.record(scheduler, iteration, mm_cache_stats=None, engine_idx=0, more="to come")

    async def add_lora(self, request: LoRARequest) -> bool:
        await Path(request.lora_path).stat()
        return True

    async def remove_lora(self, number: int) -> bool:
        return True


def statistics(num_running: int, num_prefilled: int) -> tuple[Any, Any]:
    scheduler = SimpleNamespace(kv_cache_usage=0.1, num_running_reqs=num_running, num_waiting_reqs=0)
    iteration = SimpleNamespace(
        time_to_first_tokens_iter=[0.1] if num_prefilled else [],
        num_prompt_tokens=num_prefilled,
        num_preempted_reqs=0,
    )
    return scheduler, iteration


def tokens_input(prompt_token_ids: list[int], *, cache_salt: str | None = None) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


def install(patch: pytest.MonkeyPatch, *, is_new: bool, is_cpu: bool = False) -> None:
    """Put a fake in the place of vLLM."""
    sampling = {"SamplingParams": OldSamplingParams, "RequestOutputKind": SimpleNamespace(DELTA="delta")}
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.config": {"KVEventsConfig": KVEventsConfig, "KVTransferConfig": KVTransferConfig},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": NewEngineArgs if is_new else OldEngineArgs},
        "vllm.v1.engine.async_llm": {"AsyncLLM": NewAsyncLLM if is_new else OldAsyncLLM},
        "vllm.v1.metrics.loggers": {"StatLoggerBase": StatLoggerBase},
        "vllm.sampling_params": sampling,
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: is_cpu)},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.inputs.engine": {"tokens_input": tokens_input} if is_new else {},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        patch.setitem(sys.modules, name, module)
