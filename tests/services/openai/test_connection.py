"""What clients do to a connection: leave, stall, trickle."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from dynamo_sdk.services.openai import HttpLimits, OpenAIApp
from dynamo_sdk.services.openai import connection as connection_module
from dynamo_sdk.services.openai.connections import Connections
from dynamo_sdk.types import GenerateRequest

from .asking import Wire, chat, completion
from .fakes import ScriptedBackend, ids_of, running
from .sockets import connected, post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
GET_LIVE = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
GET_METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
LONG = ids_of(" block") * 400


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Connections differ between the two loops."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


def endless(request: GenerateRequest) -> list[int]:
    return LONG


# --- leaving


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("is_reset", [True, False])
async def test_leaving_closes_every_choice_at_once(n: int, stream: bool, is_reset: bool) -> None:
    backend = ScriptedBackend(gate=asyncio.Event(), free_tokens=2)
    async with running(backend) as address:
        async with connected(address) as client:
            await client.send(post(CHAT, chat(n=n, stream=stream)))
            if stream:
                await client.reader.readuntil(b"finish_reason")
            await backend.until(lambda: backend.num_tokens_sent == 2 * n)
            assert backend.num_open == n
            if is_reset:
                client.reset()
            else:
                client.writer.close()
            await backend.all_closed.wait()
    assert backend.num_tokens_sent == 2 * n


async def test_leaving_before_the_first_token() -> None:
    backend = ScriptedBackend(gate=asyncio.Event(), free_tokens=0)
    async with running(backend) as address:
        async with connected(address) as client:
            await client.send(post(CHAT, chat(stream=True)))
            await backend.until(lambda: backend.num_open == 1)
            client.reset()
            await backend.all_closed.wait()


async def test_leaving_is_counted_as_cancelled() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with running(backend) as address:
        async with connected(address) as client, connected(address) as scraper:
            await client.send(post(CHAT, chat(stream=True)))
            await client.reader.readuntil(b"finish_reason")
            await scraper.send(GET_METRICS)
            _, text = await scraper.answer()
            assert b'dynamo_frontend_inflight_requests{model="demo",worker_id=""} 1.0' in text
            client.reset()
            await backend.all_closed.wait()
            await scraper.send(GET_METRICS)
            _, text = await scraper.answer()
    assert b'status="cancelled",worker_id=""} 1.0' in text
    assert b'dynamo_frontend_inflight_requests{model="demo",worker_id=""} 0.0' in text
    assert b'dynamo_frontend_queued_requests{model="demo",worker_id=""} 0.0' in text


async def test_leaving_with_another_request_pipelined_behind() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with running(backend) as address:
        async with connected(address) as client:
            await client.send(post(CHAT, chat(stream=True)) + post(CHAT, chat()))
            await client.reader.readuntil(b"finish_reason")
            client.reset()
            # Reading is paused while a request waits behind, so only a write meets the reset.
            assert backend.gate is not None
            backend.gate.set()
            await backend.all_closed.wait()
    assert len(backend.requests) == 1


class ClosingWire(Wire):
    """Its client goes when the first answer is written, which the connection hears in the next tick."""

    connection: asyncio.Protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def is_closing(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass


async def test_the_body_of_a_request_behind_is_given_back_when_the_client_goes() -> None:
    connections = Connections(OpenAIApp(ScriptedBackend(), limits=HttpLimits()))
    wire = ClosingWire()
    wire.connection = connections.make()
    wire.connection.connection_made(wire)
    wire.connection.data_received(post("/nowhere", chat()) * 2)
    while connections.tasks:
        await asyncio.wait(connections.tasks)
    await connections.wait_gone()
    connections.budget.take(connections.limits.max_buffered_bytes)  # raises if some is still taken


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(post(CHAT, chat(max_tokens=1)) + post(CHAT, chat(max_tokens=2)))
        for num_tokens in (1, 2):
            _, body = await client.answer()
            assert json.loads(body)["usage"]["completion_tokens"] == num_tokens


# --- asking first


@pytest.mark.parametrize(("version", "is_told"), [("1.1", True), ("1.0", False)])
async def test_a_body_is_asked_for_where_the_client_waits_for_that(version: str, is_told: bool) -> None:
    request = post(CHAT, chat(), expect="100-continue").replace(b"HTTP/1.1", b"HTTP/" + version.encode())
    middle = request.index(b"\r\n\r\n") + 4
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(request[:middle])
        if is_told:
            assert (await client.head())[0] == 100
        await client.send(request[middle:])
        assert (await client.answer())[0] == 200


async def test_a_body_behind_another_request_is_asked_for_when_that_is_answered() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    request = post(CHAT, chat(max_tokens=1), expect="100-continue")
    middle = request.index(b"\r\n\r\n") + 4
    limits = {"body_timeout_s": 0.2, "keep_alive_s": 0.5}
    async with running(backend, **limits) as address:
        async with connected(address) as client, connected(address) as idle:
            await idle.send(GET_LIVE)
            await idle.answer()
            await client.send(post(CHAT, chat()) + request[:middle])
            await backend.until(lambda: backend.num_open == 1)
            await idle.until_closed()  # longer than a body may take that was asked for
            assert backend.gate is not None
            backend.gate.set()
            assert (await client.answer())[0] == 200
            assert (await client.head())[0] == 100
            await client.send(request[middle:])
            assert (await client.answer())[0] == 200


# --- offering an upgrade


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
@pytest.mark.parametrize("cut", [0, 1, 3])
async def test_a_body_behind_an_offer_to_upgrade_is_read(upgrade: str, cut: int) -> None:
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": upgrade, "http2_settings": "AAMAAABk"}
    async with running(ScriptedBackend()) as address, connected(address) as client:
        for num_tokens in (1, 2):
            request = post(CHAT, chat(max_tokens=num_tokens), **offer)
            middle = request.index(b"\r\n\r\n") + 4 + cut
            await client.send(request[:middle])
            await client.send(request[middle:] + (GET_LIVE if num_tokens == 2 else b""))
            _, body = await client.answer()
            assert json.loads(body)["usage"]["completion_tokens"] == num_tokens
        assert (await client.answer())[0] == 200


async def test_a_chunked_body_behind_an_offer_to_upgrade_is_read() -> None:
    content = json.dumps(chat(max_tokens=1)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    chunk = b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n"
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(head + b"transfer-encoding: chunked\r\n\r\n" + chunk + GET_LIVE)
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]


async def test_an_offer_to_upgrade_with_a_body_without_end_is_400() -> None:
    head = b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: gzip\r\n\r\n"
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(head)
        assert (await client.answer())[0] == 400
        await client.until_closed()


# --- stalling


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    body = completion(["x"] * 64, stream=True, n=8, max_tokens=400, return_token_ids=True)
    backend = ScriptedBackend(per_choice=endless)
    async with running(backend, write_stall_timeout_s=0.1) as address:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        with connection:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, post("/v1/completions", body))
            await backend.until(lambda: bool(backend.requests))
            async with asyncio.timeout(20):
                await backend.all_closed.wait()
    assert backend.num_tokens_sent < 64 * 8 * 400, "back-pressure held the backend"


class StuckWire(Wire):
    """Its client reads nothing, but so little is left to send that writing was never paused."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = asyncio.Event()

    def abort(self) -> None:
        self.is_aborted.set()

    def get_write_buffer_size(self) -> int:
        return 1000


async def test_a_client_that_does_not_read_the_end_is_cut_off() -> None:
    app = OpenAIApp(ScriptedBackend(), limits=HttpLimits(write_stall_timeout_s=0.05))
    connection, wire = Connections(app).make(), StuckWire()
    connection.connection_made(wire)
    connection.pause_writing()
    connection.close()
    connection.resume_writing()  # half of it was taken
    async with asyncio.timeout(20):
        await wire.is_aborted.wait()
    connection.connection_lost(None)


@pytest.mark.parametrize(
    "start", [b"", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n", b"\r\n"]
)
async def test_a_head_that_does_not_come_ends_with_408(start: bytes) -> None:
    async with running(ScriptedBackend(), head_timeout_s=0.05) as address, connected(address) as client:
        await client.send(start)
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["type"]) == (408, "invalid_request_error")
        assert await client.until_closed() == b""


async def test_a_body_that_does_not_come_ends_with_408() -> None:
    async with running(ScriptedBackend(), body_timeout_s=0.05) as address, connected(address) as client:
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        await client.until_closed()


@pytest.mark.parametrize("again", [b"", b"\r\n", b"GET /li"])
async def test_an_idle_connection_is_closed(again: bytes) -> None:
    limits = {"keep_alive_s": 0.05, "head_timeout_s": 0.05}
    async with running(ScriptedBackend(), **limits) as address, connected(address) as client:
        await client.send(GET_LIVE)
        assert (await client.answer())[0] == 200
        await client.send(again)
        await client.until_closed()


@pytest.mark.parametrize("num_before", [0, 1])
async def test_an_answer_may_take_longer_than_a_head_or_idling(num_before: int) -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    limits = {"keep_alive_s": 0.2, "head_timeout_s": 0.2, "body_timeout_s": 0.2}
    async with running(backend, **limits) as address:
        async with connected(address) as client, connected(address) as idle:
            for _ in range(num_before):
                await client.send(GET_LIVE)
                assert (await client.answer())[0] == 200
            await client.send(post(CHAT, chat()))
            await backend.until(lambda: backend.num_open == 1)
            await idle.until_closed()
            async with connected(address) as later:
                await later.until_closed()  # whoever connected after the request has run out of time
            assert backend.gate is not None
            backend.gate.set()
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /li", b"no HTTP\r\n\r\n"])
async def test_what_comes_behind_a_request_does_not_end_its_answer(behind: bytes) -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with running(backend, head_timeout_s=0.2) as address:
        async with connected(address) as client, connected(address) as later:
            await client.send(post(CHAT, chat()))
            await backend.until(lambda: backend.num_open == 1)
            await client.send(behind)
            await later.until_closed()
            async with connected(address) as latest:
                await latest.until_closed()  # by now a head would have had to be there
            assert backend.gate is not None
            backend.gate.set()
            assert (await client.answer())[0] == 200
            rest = await client.until_closed()
            assert not rest or rest.startswith(b"HTTP/1.1 408")


async def test_small_writes_are_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = connection_module.Connection.connection_made

    def spy(self: connection_module.Connection, transport: asyncio.BaseTransport) -> None:
        real(self, transport)
        made.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(connection_module.Connection, "connection_made", spy)
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(GET_LIVE)
        await client.answer()
    assert made == [1]
