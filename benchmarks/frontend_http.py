"""CPU time of the HTTP half of the frontend, per streamed chunk and per request.

A server process runs the real application over a backend that costs next to nothing; a raw client in
this process reads the streams. ``saturated``: tokens are always ready. ``paced``: one step every
``--step-ms`` gives each stream a token, as an engine does.

    python benchmarks/frontend_http.py [--streams 64] [--chunks 256]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import uvloop

import dynamo_sdk
from dynamo_sdk.services.openai import (
    Backend,
    BackendCall,
    ChunkSink,
    GenerateOptions,
    Health,
    HttpLimits,
    OpenAIApp,
    serve,
)
from dynamo_sdk.services.openai.exchange import Exchange
from dynamo_sdk.services.openai.routes import Received
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ModelRecord,
    TokenLogprobs,
    Usage,
)

MODEL = ModelRecord(
    name="demo", path=str(Path(dynamo_sdk.__file__).parent / "demo_model"), context_length=1_000_000
)

NUM_ROUNDS = 50
"""Short requests per connection."""


class TickingBackend(Backend):
    """One token per loop turn, or one per step of ``step_s`` for all streams together."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._calls: list[TickingCall] = []
        self._is_ticking = False

    def models(self) -> Mapping[str, ModelRecord]:
        return {MODEL.name: MODEL}

    def health(self) -> Health:
        return Health(is_ready=True)

    def generate(self, request: GenerateRequest, sink: ChunkSink, *, options: GenerateOptions) -> BackendCall:
        call = TickingCall(request, sink)
        self._calls.append(call)
        if not self._is_ticking:
            self._is_ticking = True
            self._schedule()
        return call

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._step_s:
            loop.call_later(self._step_s, self._tick)
        else:
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._calls = [call for call in self._calls if call.step()]
        self._is_ticking = bool(self._calls)
        if self._is_ticking:
            self._schedule()

    async def embed(self, request: EmbedRequest, *, options: GenerateOptions) -> EmbedOutput:
        raise NotImplementedError


class TickingCall(BackendCall):
    def __init__(self, request: GenerateRequest, sink: ChunkSink) -> None:
        self._num_tokens = request.sampling.max_tokens
        self._num_prompt_tokens = request.num_prompt_tokens
        self._scores = None if request.sampling.logprobs is None else (TokenLogprobs(-1.0),)
        self._sink = sink
        self._index = 0
        self._is_over = self._is_paused = False

    def step(self) -> bool:
        """Give one token; whether there is more."""
        if self._is_over or self._is_paused:
            return not self._is_over
        self._index += 1
        self._is_over = self._index == self._num_tokens
        self._sink.on_chunk(
            GenerateChunk(
                token_ids=(300 + self._index % 1000,),
                logprobs=self._scores,
                finish_reason=FinishReason.LENGTH if self._is_over else None,
                usage=Usage(self._num_prompt_tokens, self._num_tokens) if self._is_over else None,
            )
        )
        return not self._is_over

    def cancel(self) -> None:
        self._is_over = True

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False


async def run_server(fd: int, step_s: float) -> None:
    app = OpenAIApp(TickingBackend(step_s), limits=HttpLimits())

    async def cpu(exchange: Exchange, received: Received) -> None:
        exchange.send_json(time.process_time())

    app.add_route("GET", "/cpu", cpu)
    await serve(app, socket.socket(fileno=fd), shutdown=asyncio.Event())


class Client:
    """One keep-alive connection that sends prepared bytes and reads to the end of each answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Client:
        return cls(*await asyncio.open_connection(*address))

    async def get_json(self, path: str) -> float:
        self.writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return float(json.loads(await self._body()))

    async def post(self, request: bytes) -> bytes:
        self.writer.write(request)
        return await self._body()

    async def stream(self, request: bytes) -> bytes:
        self.writer.write(request)
        pieces: list[bytes] = []
        while not pieces or not pieces[-1].endswith(b"0\r\n\r\n"):
            pieces.append(await self.reader.read(1 << 18))
            if not pieces[-1]:
                raise ConnectionError("the server closed the connection")
        return b"".join(pieces)

    async def _body(self) -> bytes:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200"), head
        length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
        return await self.reader.readexactly(length)


def request_bytes(*, max_tokens: int, stream: bool, **fields: object) -> bytes:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is a KV block?"}],
        "max_tokens": max_tokens,
        "stream": stream,
        **fields,
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def measure(address: tuple[str, int], num_streams: int, num_chunks: int, label: str) -> None:
    probe = await Client.connect(address)
    clients = [await Client.connect(address) for _ in range(num_streams)]
    for name, fields in (
        ("plain", {}),
        ("stop strings", {"stop": ["never seen", "neither"]}),
        ("logprobs", {"logprobs": True}),
    ):
        warm = request_bytes(max_tokens=4, stream=True, **fields)
        await asyncio.gather(*(client.stream(warm) for client in clients))
        request = request_bytes(max_tokens=num_chunks, stream=True, ignore_eos=True, **fields)
        cpu_s, start_s = await probe.get_json("/cpu"), time.perf_counter()
        answers = await asyncio.gather(*(client.stream(request) for client in clients))
        wall_s = time.perf_counter() - start_s
        cpu_s = await probe.get_json("/cpu") - cpu_s
        total = sum(answer.count(b"data: {") for answer in answers)
        print(
            f"{label:10} {name:13} {total} chunks in {wall_s:.2f} s: "
            f"{cpu_s / total * 1e6:5.1f} us CPU per chunk, {total / wall_s:,.0f} chunks/s"
        )
    for stream in (False, True):
        request = request_bytes(max_tokens=1, stream=stream)

        async def repeat(client: Client, request: bytes = request, stream: bool = stream) -> None:
            for _ in range(NUM_ROUNDS):
                await (client.stream(request) if stream else client.post(request))

        cpu_s = await probe.get_json("/cpu")
        await asyncio.gather(*(repeat(client) for client in clients))
        cpu_s = await probe.get_json("/cpu") - cpu_s
        kind = "streamed" if stream else "whole"
        print(f"{label:10} {kind} request: {cpu_s / NUM_ROUNDS / num_streams * 1e6:6.0f} us CPU")
    for client in [probe, *clients]:
        client.writer.close()


async def main(args: argparse.Namespace) -> None:
    for label, step_ms in (("saturated", 0.0), ("paced", args.step_ms)):
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        command = [sys.executable, __file__, "--serve", str(listener.fileno()), "--step-ms", str(step_ms)]
        server = await asyncio.create_subprocess_exec(*command, pass_fds=[listener.fileno()])
        try:
            await measure(listener.getsockname(), args.streams, args.chunks, label)
        finally:
            server.terminate()
            await server.wait()
            listener.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    if arguments.serve is not None:
        uvloop.run(run_server(arguments.serve, arguments.step_ms / 1000))
    else:
        uvloop.run(main(arguments))
