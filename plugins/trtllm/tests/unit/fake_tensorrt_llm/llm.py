"""``LLM`` of the stand-in: every request is a task that gives a token per turn of the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

from dynamo_sdk_trtllm.contract import Contract

from .cache import Cache, Mailbox
from .strict import is_in, method

FIRST_TOKEN = 10


class RequestError(Exception):
    """TensorRT-LLM's name for what goes wrong with one request."""


@dataclass
class World:
    """What all engines of one test share. ``transfers``: tokens by opaque state, until they are fetched.
    ``may_fetch``: cleared, transfers hang. ``tokens_per_output``: how many come at once."""

    version: str
    types: dict[str, type]
    num_blocks: int = 256
    vocab_size: int = 64
    tokens_per_output: int = 1
    num_leaked: int = 0
    is_healthy: bool = True
    transfers: dict[bytes, list[int]] = field(default_factory=dict)
    may_fetch: asyncio.Event = field(default_factory=asyncio.Event)
    engines: list[Any] = field(default_factory=list)
    requests: list[SimpleNamespace] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_fetch.set()


class Outputs:
    """``RequestOutput``: one object, which grows while it is iterated over."""

    outputs: list[Any]
    finished: bool
    cached_tokens: int

    class Completion:
        token_ids: list[int]
        logprobs: list[dict[int, Any]] | None
        finish_reason: str | None
        disaggregated_params: Any

        def __init__(self) -> None:
            self.token_ids, self.logprobs = [], None
            self.finish_reason = self.disaggregated_params = None

    def __init__(self, engine: Any, asked: SimpleNamespace) -> None:
        self.outputs, self.finished, self.cached_tokens = [self.Completion()], False, 0
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._engine, self._asked = engine, asked
        self._has_begun = self.is_aborted = False
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)
        engine.running.add(self)

    def abort(self) -> None:
        if self._task.done():
            return
        params = self._asked.disaggregated_params
        if params is not None and params.request_type == "generation_only" and not self._has_begun:
            self._engine.world.num_leaked += 1
        self.is_aborted = True
        self._task.cancel()

    def __aiter__(self) -> Outputs:
        return self

    async def __anext__(self) -> Outputs:
        if self.finished:
            raise StopAsyncIteration
        response = await self._queue.get()
        if isinstance(response, Exception):
            self.finished = True
            raise response
        completion = self.outputs[0]
        completion.token_ids.extend(response["tokens"])
        if response["logprobs"] is not None:
            completion.logprobs = [*(completion.logprobs or []), *response["logprobs"]]
        completion.finish_reason = response["reason"]
        completion.disaggregated_params = response.get("params")
        self.cached_tokens = response.get("cached", self.cached_tokens)
        self.finished = response["reason"] is not None
        return self

    async def _run(self) -> None:
        try:
            async for response in self._engine.responses(self._asked):
                self._has_begun = True
                self._queue.put_nowait(response)
        except Exception as error:
            self._queue.put_nowait(error)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._engine.running.discard(self)
        if task.cancelled():
            self._queue.put_nowait({"tokens": [], "logprobs": None, "reason": "cancelled"})


def make_llm(contract: Contract, version: str, world: World) -> type:
    """The class ``LLM`` of one version."""

    class LLM:
        def __init__(self, model: str, **kwargs: Any) -> None:
            try:
                self.args = world.types["TorchLlmArgs"](model=model, **kwargs)
            except TypeError as error:
                raise ValueError(f"got invalid argument: {error}") from error
            if model.endswith("broken"):
                raise RuntimeError("no such model")
            cache = self.args.kv_cache_config
            self.world, self.running = world, set[Outputs]()
            self.is_shut_down = False
            self.block_size = cache.tokens_per_block or 32
            self.events, self.stats = Mailbox(cache.event_buffer_max_size), Mailbox(10_000)
            num_ranks = self.args.tensor_parallel_size if self.args.enable_attention_dp else 1
            self.caches = [
                Cache(world.num_blocks, self.block_size, self.events, rank=rank if num_ranks > 1 else None)
                for rank in range(num_ranks)
            ]
            world.engines.append(self)

        @method(contract, "LLM.generate_async", version)
        def generate_async(self, asked: SimpleNamespace) -> Outputs:
            self._check(asked)
            world.requests.append(asked)
            return Outputs(self, asked)

        @method(contract, "LLM.get_kv_cache_events_async", version)
        def get_kv_cache_events_async(self, asked: SimpleNamespace) -> AsyncIterator[Any]:
            return self.events.read(asked.timeout)

        @method(contract, "LLM.get_stats_async", version)
        def get_stats_async(self, asked: SimpleNamespace) -> AsyncIterator[Any]:
            return self.stats.read(asked.timeout)

        @method(contract, "LLM.shutdown", version)
        def shutdown(self, asked: SimpleNamespace) -> None:
            assert all(each.is_aborted for each in self.running), "requests ran when the engine was shut down"
            self.is_shut_down = True

        def _check_health(self) -> bool:
            return world.is_healthy

        # -- inside

        def _check(self, asked: SimpleNamespace) -> None:
            sampling, params = asked.sampling_params, asked.disaggregated_params
            if not asked.inputs or not all(isinstance(token, int) for token in asked.inputs):
                raise ValueError("inputs are no token ids")
            if self.args.max_seq_len and len(asked.inputs) >= self.args.max_seq_len:
                raise ValueError("the prompt is too long")
            for name in ("temperature", "top_p", "min_p"):
                value = getattr(sampling, name)
                if value is not None and not value >= 0:
                    raise ValueError(f"{name} is {value}")
            if params is not None and self.args.cache_transceiver_config is None:
                raise ValueError("disaggregated_params without a cache transceiver")
            placed = asked.scheduling_params
            if placed is not None and not 0 <= placed.attention_dp_rank < len(self.caches):
                raise ValueError(f"there is no rank {placed.attention_dp_rank}")

        async def responses(self, asked: SimpleNamespace) -> AsyncIterator[dict[str, Any]]:
            params = asked.disaggregated_params
            kind = None if params is None else params.request_type
            tokens, first = list(asked.inputs), []
            placed = asked.scheduling_params
            rank = len(world.requests) % len(self.caches) if placed is None else placed.attention_dp_rank
            cache = self.caches[rank]
            await asyncio.sleep(0)
            if kind == "generation_only":
                first = await self._fetch(params, tokens)
            cached = cache.num_cached(tokens, asked.cache_salt)
            self._report(rank, len(tokens) - cached if kind != "generation_only" else 0)
            cache.store(tokens, asked.cache_salt)
            made = list(first)
            pending, logprobs = list(first), _carried(params)
            limit = 1 if kind == "context_only" else asked.sampling_params.max_tokens
            reason: str | None = None
            while reason is None:
                token = self._choose(asked.sampling_params, tokens + made, len(made) - len(first))
                made.append(token)
                pending.append(token)
                if asked.sampling_params.logprobs is not None:
                    entry = self._logprobs(tokens + made[:-1], token, asked.sampling_params.logprobs)
                    logprobs = [*(logprobs or []), entry]
                reason = _reason(asked.sampling_params, made, limit)
                if reason is not None:
                    cache.store(tokens + made[:-1], asked.cache_salt)
                if reason is not None or len(pending) >= world.tokens_per_output:
                    is_stripped = reason == "stop" and not asked.sampling_params.include_stop_str_in_output
                    yield {
                        "tokens": pending[:-1] if is_stripped else pending,
                        "logprobs": logprobs,
                        "reason": reason,
                        "cached": cached if kind != "generation_only" else len(tokens),
                        "params": self._hand_over(params, tokens, made, logprobs)
                        if kind == "context_only"
                        else None,
                    }
                    pending, logprobs = [], None
                self._report(rank, 0)
                await asyncio.sleep(0)

        def _hand_over(self, params: Any, tokens: list[int], made: list[int], logprobs: Any) -> Any:
            state = repr((id(self), len(world.requests), len(tokens))).encode()
            world.transfers[state] = tokens
            fields = {"ctx_request_id": len(world.requests), "opaque_state": state, "first_gen_tokens": made}
            if is_in("1.3", version):
                fields |= {"disagg_request_id": params.disagg_request_id}
            if logprobs is not None:
                fields["first_gen_log_probs"] = logprobs
            return world.types["DisaggregatedParams"](request_type="context_only", **fields)

        async def _fetch(self, params: Any, tokens: list[int]) -> list[int]:
            await world.may_fetch.wait()
            if world.transfers.pop(params.opaque_state, None) != tokens:
                raise RequestError("there is nothing to fetch")
            return list(params.first_gen_tokens)

        def _choose(self, sampling: Any, tokens: list[int], place: int) -> int:
            is_narrow = (sampling.top_p or 1) < 1e-3 or (sampling.min_p or 0) >= 1
            if sampling.top_k == 1 or is_narrow:
                return self._draw(tokens, b"")
            return self._draw(tokens, str((sampling.seed or 0) + place).encode())

        def _draw(self, tokens: list[int], salt: bytes) -> int:
            number = int.from_bytes(blake2b(repr(tokens).encode() + salt, digest_size=8).digest(), "little")
            return FIRST_TOKEN + number % (world.vocab_size - FIRST_TOKEN)

        def _logprobs(self, tokens: list[int], token: int, num_top: int) -> dict[int, Any]:
            """The likeliest token first, and then as many neighbours as asked for."""
            best = self._draw(tokens, b"")
            ranked = [best, *(each for each in range(world.vocab_size) if each != best)]
            wanted = {*ranked[:num_top], token}
            logprob = world.types["Logprob"]
            return {
                each: logprob(logprob=-0.1 - math.log1p(place), rank=place + 1)
                for place, each in enumerate(ranked)
                if each in wanted
            }

        def _report(self, rank: int, num_prefill_tokens: int) -> None:
            if not self.args.enable_iter_perf_stats:
                return
            row = {
                "iterLatencyMS": 1.5,
                "attentionDpRank": rank,
                "kvCacheStats": {"usedNumBlocks": len(self.running), "maxNumBlocks": world.num_blocks},
                "inflightBatchingStats": {
                    "numContextRequests": int(num_prefill_tokens > 0),
                    "numCtxTokens": num_prefill_tokens,
                    "numGenRequests": int(num_prefill_tokens == 0),
                    "numGenKvTokens": 7,
                    "numQueuedContextRequests": 0,
                    "numPausedRequests": 0,
                },
            }
            self.stats.put(row)

    if is_in("1.3", version):

        @method(contract, "LLM.get_kv_cache_capacity", version)
        def get_kv_cache_capacity(self: LLM, asked: SimpleNamespace) -> dict[str, int]:
            return {"maxNumBlocks": world.num_blocks, "tokensPerBlock": self.block_size}

        LLM.get_kv_cache_capacity = get_kv_cache_capacity  # type: ignore[attr-defined]
    return LLM


def _carried(params: Any) -> list[dict[int, Any]] | None:
    if params is None or params.request_type != "generation_only":
        return None
    carried: list[dict[int, Any]] | None = params.first_gen_log_probs
    return carried


def _reason(sampling: Any, made: list[int], limit: int) -> str | None:
    stops = sampling.stop_token_ids or ()
    if made[-1] in stops and len(made) >= (sampling.min_tokens or 0):
        return "stop"
    return "length" if len(made) >= limit else None
