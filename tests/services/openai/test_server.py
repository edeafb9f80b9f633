"""The life of the server, and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.services.openai import HttpLimits, OpenAIApp, serve
from dynamo_sdk.services.openai import server as server_module
from dynamo_sdk.services.openai.connections import Connections
from dynamo_sdk.services.openai.exchange import Exchange
from dynamo_sdk.services.openai.routes import Received

from .asking import Wire, call, chat
from .fakes import MODEL, ScriptedBackend, running
from .sockets import connected, post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
MUCH = bytes(16 << 20)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Connections differ between the two loops."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


def start(
    backend: ScriptedBackend, **limits: float
) -> tuple[asyncio.Task[None], asyncio.Event, tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    shutdown = asyncio.Event()
    app = OpenAIApp(backend, limits=HttpLimits(**limits))  # type: ignore[arg-type]
    return asyncio.create_task(serve(app, listener, shutdown=shutdown)), shutdown, listener.getsockname()


async def test_a_drain_lets_streams_end_and_takes_no_new_ones() -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(gate=gate)
    server, shutdown, address = start(backend, drain_timeout_s=20)
    async with connected(address) as client, connected(address) as idle:
        await client.send(post(CHAT, chat(stream=True)))
        await client.reader.readuntil(b"finish_reason")
        shutdown.set()
        assert await idle.until_closed() == b""
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
        gate.set()
        assert (await client.until_closed()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await server


async def test_what_outlasts_the_drain_is_told_and_closed() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    server, shutdown, address = start(backend, drain_timeout_s=0.05)
    async with connected(address) as streamed, connected(address) as whole:
        await streamed.send(post(CHAT, chat(stream=True)))
        await whole.send(post(CHAT, chat()))
        await streamed.reader.readuntil(b"finish_reason")
        await backend.until(lambda: backend.num_open == 2)
        shutdown.set()
        status, body = await whole.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
        end = await streamed.until_closed()
        assert b'data: {"error":{"message":"the server is shutting down' in end
        assert b"[DONE]" not in end
    await server
    assert backend.num_open == 0


async def test_cancelling_the_server_leaves_nothing() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    before = asyncio.all_tasks()
    server, _, address = start(backend)
    async with connected(address) as client:
        await client.send(post(CHAT, chat(stream=True)))
        await client.reader.readuntil(b"finish_reason")
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        assert backend.num_open == 0
        await client.until_closed()
    assert asyncio.all_tasks() == before


async def test_cancelling_the_server_begins_nothing() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    server, _, address = start(backend)
    async with connected(address) as client:
        await client.send(post(CHAT, chat()) * 2)
        await backend.until(lambda: backend.num_open == 1)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        assert (await client.answer())[0] == 503
        assert await client.until_closed() == b""
    assert len(backend.requests) == 1


@asynccontextmanager
async def unread_answer() -> AsyncIterator[tuple[socket.socket, asyncio.Task[None]]]:
    """A client that has read one byte of an answer larger than all buffers, and a server told to end, which
    has no patience with requests."""

    async def send_much(exchange: Exchange, _: Received) -> None:
        exchange.send_bytes(MUCH, content_type=b"text/plain")

    app = OpenAIApp(ScriptedBackend(), limits=HttpLimits(drain_timeout_s=0.0))
    app.add_route("GET", "/much", send_much)
    listener = socket.create_server(("127.0.0.1", 0))
    shutdown = asyncio.Event()
    server = asyncio.create_task(serve(app, listener, shutdown=shutdown))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
        await loop.sock_recv(client, 1)
        shutdown.set()
        yield client, server


async def test_the_end_waits_until_the_last_answer_is_sent() -> None:
    async with unread_answer() as (client, server):
        await settle()
        assert not server.done()
        num_read = 0
        while piece := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            num_read += len(piece)
        assert num_read > len(MUCH)
        await server


async def test_a_client_that_does_not_read_the_last_answer_does_not_keep_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_CLEAN_UP_S", 0.05)
    async with asyncio.timeout(20), unread_answer() as (_, server):
        await server


async def test_a_connection_that_was_accepted_when_the_drain_began_is_closed() -> None:
    connections = Connections(OpenAIApp(ScriptedBackend()))
    connections.end()
    connection, wire = connections.make(), ClosedWire()
    connection.connection_made(wire)
    assert wire.is_closed
    connection.connection_lost(None)
    await connections.wait_gone()


class ClosedWire(Wire):
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


async def test_the_request_id_is_the_clients_where_it_is_sane() -> None:
    async def id_for(given: str) -> str:
        answer = await call(ScriptedBackend(), "/live", headers={"x-request-id": given})
        return answer.headers["x-request-id"]

    assert await id_for("trace-1.a:b_c") == "trace-1.a:b_c"
    for insane in ("", "a b", "x" * 129, "-a", "ä"):
        assert await id_for(insane) not in ("", insane)
    refused = await call(ScriptedBackend(), CHAT, {}, headers={"x-request-id": "mine"})
    assert (refused.status, refused.headers["x-request-id"]) == (400, "mine")


async def test_the_clients_id_is_not_the_engines() -> None:
    backend = ScriptedBackend()
    for _ in range(2):
        await call(backend, CHAT, chat(n=2), headers={"x-request-id": "same"})
    assert len({request.request_id for request in backend.requests}) == 4


async def test_health_says_why_not() -> None:
    assert (await call(ScriptedBackend(), "/health")).status == 200
    answer = await call(ScriptedBackend(is_ready=False), "/health")
    assert (answer.status, answer.json()["reason"]) == (503, "no decode worker is ready")
    assert (await call(ScriptedBackend(is_ready=False), "/live")).status == 200


async def test_a_request_past_its_deadline_is_504() -> None:
    backend = ScriptedBackend(gate=asyncio.Event(), free_tokens=0)
    app = OpenAIApp(backend, limits=HttpLimits(deadline_s=0.05))
    answer = await call(app, CHAT, chat())
    assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
    assert backend.num_open == 0


async def test_a_stream_past_its_deadline_ends_with_an_error_event() -> None:
    app = OpenAIApp(ScriptedBackend(gate=asyncio.Event()), limits=HttpLimits(deadline_s=0.2))
    await app.directory.pipeline(app.directory.record(MODEL))  # loading it is not what takes the time here
    answer = await call(app, CHAT, chat(stream=True))
    assert answer.status == 200
    assert b'"code":"deadline_exceeded"' in answer.body.rsplit(b"data: ", 1)[1]


async def test_no_model_yet_is_503_and_a_planned_one_too() -> None:
    backend = ScriptedBackend(records={})
    assert (await call(backend, CHAT, chat())).status == 503

    class Planned(ScriptedBackend):
        def is_planned(self, name: str) -> bool:
            return name == "later"

    assert (await call(Planned(), CHAT, {**chat(), "model": "later"})).status == 503
    assert (await call(Planned(), CHAT, {**chat(), "model": "never"})).status == 404


async def test_a_broken_model_folder_is_503() -> None:
    backend = ScriptedBackend()
    record = backend.records[MODEL]
    backend.records["broken"] = type(record)(name="broken", path="/nowhere", context_length=9)
    answer = await call(backend, CHAT, {**chat(), "model": "broken"})
    assert (answer.status, "tokenizer.json" in answer.error["message"]) == (503, True)


async def test_an_adapter_runs_on_its_base_model() -> None:
    backend = ScriptedBackend()
    record = backend.records[MODEL]
    backend.records["tuned"] = type(record)(
        name="tuned", path="/adapter", context_length=record.context_length, parent=MODEL
    )
    answer = await call(backend, CHAT, {**chat(), "model": "tuned"})
    assert (answer.status, answer.json()["model"]) == (200, "tuned")
    assert (backend.requests[0].model, backend.requests[0].lora) == (MODEL, "tuned")


async def test_metrics_count_what_happened() -> None:
    metrics = FrontendMetrics()
    app = OpenAIApp(ScriptedBackend(num_cached=2), metrics=metrics)
    await call(app, CHAT, chat(max_tokens=4, n=2))
    await call(app, CHAT, chat(stream=True, max_tokens=4))
    await call(app, CHAT, chat(temperature=9))
    await call(app, CHAT, {**chat(), "model": "a-name-of-the-clients-choice"})
    text = (await call(app, "/metrics")).body.decode()
    requests = 'dynamo_frontend_requests_total{endpoint="chat_completions"'
    for line in (
        f'{requests},model="demo",status="success",worker_id=""}} 2.0',
        f'{requests},model="demo",status="rejected",worker_id=""}} 1.0',
        f'{requests},model="",status="rejected",worker_id=""}} 1.0',
        'dynamo_frontend_inflight_requests{model="demo",worker_id=""} 0.0',
        'dynamo_frontend_queued_requests{model="demo",worker_id=""} 0.0',
        'dynamo_frontend_time_to_first_token_seconds_count{model="demo",worker_id=""} 3.0',
        'dynamo_frontend_inter_token_latency_seconds_count{model="demo",worker_id=""} 9.0',
        'dynamo_frontend_output_sequence_tokens_sum{model="demo",worker_id=""} 12.0',
        'dynamo_frontend_input_sequence_tokens_count{model="demo",worker_id=""} 2.0',
        'dynamo_frontend_cached_tokens_sum{model="demo",worker_id=""} 6.0',
        'dynamo_frontend_request_duration_seconds_count{model="demo",worker_id=""} 3.0',
        'w_total{worker_id="a"} 1.0',
    ):
        assert line in text.splitlines()
    assert "clients-choice" not in text


async def test_openapi_names_every_route() -> None:
    document = (await call(ScriptedBackend(), "/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    app = OpenAIApp(ScriptedBackend())
    assert set(document["paths"]) == {*app.routes, "/v1/models/{model}"}
    schema = document["components"]["schemas"]["ChatRequest"]
    assert set(schema["required"]) == {"model", "messages"}


async def test_head_of_a_get_route() -> None:
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(b"HEAD /live HTTP/1.1\r\nhost: x\r\n\r\nGET /live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head())[0] == 200
        assert (await client.answer())[1] == b'{"status":"live"}'
