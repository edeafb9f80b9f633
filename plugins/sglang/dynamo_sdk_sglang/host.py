"""The program of a host process: ``python -m dynamo_sdk_sglang.host DESCRIPTOR``. It runs one SGLang engine.

The descriptor is one end of a socket pair; the worker has the other one. When that closes, everything here
ends. What SGLang does to the process that it runs in (handlers, settings, killing all children) stays here.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import signal
import socket
import sys
from collections.abc import Collection, Coroutine, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from dynamo_sdk.engines.foreign_arguments import accepted
from dynamo_sdk.launch.lifeline import watch_lifeline

from .config import server_arguments
from .messages import (
    LENGTH_BYTES,
    Abort,
    Ended,
    FromHost,
    Generate,
    Last,
    Load,
    LoadAdapter,
    NotStarted,
    Output,
    Pipe,
    Problem,
    Start,
    Started,
    ToHost,
    UnloadAdapter,
)

LOAD_INTERVAL_S = 0.1
ABORT_INTERVAL_S = 0.05
"""Until a call that is aborted has ended, SGLang is asked so often whether it can be told now."""
RENAMED = {"routed_dp_rank": "data_parallel_rank"}
"""Arguments of ``async_generate`` that older versions have under another name."""
OPTIONAL = frozenset({"priority", "disagg_prefill_dp_rank"})
"""Those that a version may lack without the answer being another one."""


def main() -> None:
    watch_lifeline()
    worker = socket.socket(fileno=int(sys.argv[1]))
    worker.set_inheritable(False)
    start = _read_first(worker)
    if start is None:
        return
    try:
        engine = construct(start)
        started = facts_of(engine)
    except BaseException as error:
        _write(worker, NotStarted(Problem.of(error)))
        if not isinstance(error, Exception):
            raise
        return
    try:
        engine.loop.run_until_complete(Host(engine).serve(worker, started))
    finally:
        engine.shutdown()
        shared = getattr(getattr(engine.tokenizer_manager, "load_snapshot_reader", None), "path", None)
        if shared is not None:  # in shared memory; SGLang leaves it there
            Path(shared).unlink(missing_ok=True)


def construct(start: Start) -> Any:
    """Blocks for as long as SGLang starts."""
    engine = importlib.import_module("sglang").Engine
    server_args = importlib.import_module("sglang.srt.server_args").ServerArgs
    events = importlib.import_module("sglang.srt.disaggregation.kv_events").KVEventsConfig
    known = {name: value for name, value in start.events.items() if name in events.model_fields}
    ours = {**start.ours, "kv_events_config": json.dumps(known)}
    return engine(**server_arguments(server_args, start.written, ours))


def facts_of(engine: Any) -> Started:
    model, args = engine.tokenizer_manager.model_config, engine.tokenizer_manager.server_args
    result = getattr(engine, "_scheduler_init_result", None)
    info = engine.scheduler_info if result is None else result.scheduler_infos[0]
    return Started(
        context_length=model.context_len,
        vocab_size=model.vocab_size,
        page_size=args.page_size or 1,  # SGLang leaves its default open
        num_tokens=info["max_total_num_tokens"] * args.dp_size,
        dp_size=args.dp_size,
        has_seeds=getattr(args, "enable_deterministic_inference", False),
    )


class Host:
    """Carries out what the worker says. Names that SGLang gets for requests are all of one length, because it
    aborts every request whose name begins with the one that it is told."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._manager = engine.tokenizer_manager
        self._known = frozenset(inspect.signature(engine.async_generate).parameters)
        self._sampling = importlib.import_module("sglang.srt.sampling.sampling_params").SamplingParams
        self._pipe: Pipe[ToHost] = Pipe(ToHost, self._on_message, self._on_lost)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._aborted: set[int] = set()
        self._over = asyncio.Event()

    async def serve(self, worker: socket.socket, started: Started) -> None:
        """Until the worker is gone, or one of SGLang's own processes has failed, which then sends SIGQUIT."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._pipe, sock=worker)
        self._manager.auto_create_handle_loop()  # it sets handlers that take a minute for a broken SGLang
        for number in (signal.SIGQUIT, signal.SIGTERM):
            loop.add_signal_handler(number, self._over.set)
        self._pipe.send(started)
        watching = asyncio.create_task(self._watch_load())
        await self._over.wait()
        watching.cancel()

    def _on_lost(self) -> None:
        self._over.set()

    def _on_message(self, message: ToHost) -> None:
        match message:
            case Generate(number):
                self._run(number, self._generate(message))
            case Abort(number) if number in self._running:
                self._aborted.add(number)
                self._abort(number)
            case LoadAdapter(number, name, path):
                self._run(number, self._load_adapter(name, path))
            case UnloadAdapter(number, name):
                self._run(number, self._unload_adapter(name))

    def _abort(self, number: int) -> None:
        """SGLang says it once to its scheduler, which drops what it hears of requests that it does not know
        yet: those that still wait for an adapter to be looked up, say."""
        if number not in self._running:
            return
        state = self._manager.rid_to_state.get(_name(number))
        if state is not None and getattr(state, "dispatched", True):  # older versions do not say
            self._manager.abort_request(rid=_name(number))
        asyncio.get_running_loop().call_later(ABORT_INTERVAL_S, self._abort, number)

    def _run(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        self._running[number] = asyncio.create_task(self._answer(number, work))

    async def _answer(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        problem: Problem | None = None
        try:
            await work
        except Exception as error:
            problem = Problem.of(error)
        del self._running[number]
        self._aborted.discard(number)
        self._pipe.send(Ended(number, problem))

    async def _generate(self, call: Generate) -> None:
        number = call.number
        arguments = fitting(call.arguments, self._known)
        arguments["sampling_params"] = accepted(self._sampling, call.arguments["sampling_params"])
        if number in self._aborted:  # before SGLang had heard of it
            return
        outputs = await self._engine.async_generate(rid=_name(number), **arguments)
        async with aclosing(outputs):
            async for output in outputs:
                self._pipe.send(output_of(number, output))

    async def _load_adapter(self, name: str, path: str) -> None:
        answer = await self._engine.async_load_lora_adapter(name, path)
        if not answer.success:
            raise ValueError(answer.error_message)

    async def _unload_adapter(self, name: str) -> None:
        answer = await self._engine.async_unload_lora_adapter(name)
        if not answer.success:
            raise ValueError(answer.error_message)

    async def _watch_load(self) -> None:
        """SGLang's schedulers keep their load in shared memory, where versions have it."""
        if not hasattr(self._manager, "get_loads"):
            return
        last: Load | None = None
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            if not self._running:
                continue
            loads = await self._manager.get_loads()
            load = Load(sum(rank.num_used_tokens for rank in loads))
            if load != last:
                last = load
                self._pipe.send(load)


def fitting(arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """``arguments`` as this version takes them. Raises ``ValueError`` for one that is missed."""
    fitted: dict[str, Any] = {}
    for name, value in arguments.items():
        here = name if name in known else RENAMED.get(name, name)
        if here in known:
            fitted[here] = value
        elif name not in OPTIONAL:
            raise ValueError(f"this version has no {name}")
    return fitted


def output_of(number: int, output: Mapping[str, Any]) -> Output:
    meta = output["meta_info"]
    finish = meta.get("finish_reason")
    last = None
    if finish is not None:
        last = Last(
            finish=finish,
            received_s=meta.get("request_received_ts") or 0.0,
            scheduled_s=meta.get("forward_entry_time") or 0.0,
            first_token_s=meta.get("prefill_finished_time") or 0.0,
            finished_s=meta.get("request_finished_ts") or 0.0,
        )
    return Output(
        number=number,
        token_ids=output["output_ids"],
        num_cached_tokens=meta.get("cached_tokens") or 0,
        logprobs=meta.get("output_token_logprobs"),
        top=meta.get("output_top_logprobs"),
        last=last,
    )


def _name(number: int) -> str:
    return f"{number:016x}"


def _read_first(worker: socket.socket) -> Start | None:
    """None when the worker is gone already."""
    with worker.makefile("rb") as reader:
        length = reader.read(LENGTH_BYTES)
        data = reader.read(int.from_bytes(length, "big"))
    return msgspec.msgpack.decode(data, type=Start) if data else None


def _write(worker: socket.socket, message: FromHost) -> None:
    data = msgspec.msgpack.encode(message)
    worker.sendall(len(data).to_bytes(LENGTH_BYTES, "big") + data)


if __name__ == "__main__":
    main()
