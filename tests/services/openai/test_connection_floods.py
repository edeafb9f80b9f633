"""What clients send to a connection: too much, too many, or no HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

from dynamo_sdk.services.openai import HttpLimits, OpenAIApp
from dynamo_sdk.services.openai import connection as connection_module
from dynamo_sdk.services.openai.connections import Connections

from .asking import Wire, chat
from .fakes import ScriptedBackend, running
from .sockets import connected, post

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
GET_LIVE = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Connections differ between the two loops."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.parametrize(
    "flood",
    [b"x" * 200_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 40_000, b"GET / HTTP/1.1\r\na: " + b"b" * 200_000],
)
async def test_a_head_without_end_ends_with_431(flood: bytes) -> None:
    async with running(ScriptedBackend(), max_head_bytes=8192) as address, connected(address) as client:
        client.writer.write(b"GET /" + flood if flood.startswith(b"x") else flood)
        data = await client.until_closed()
    assert data == b"" or data.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


@pytest.mark.parametrize("head", [b"/" + b"x" * 9000, b"/live HTTP/1.1\r\na: " + b"b" * 9000])
@pytest.mark.parametrize("cut", [0, 8000])
async def test_a_whole_head_in_few_pieces_is_bounded_too(head: bytes, cut: int) -> None:
    """None of it waits for more, so only what was parsed tells how large it is."""
    head += b"" if b"HTTP" in head else b" HTTP/1.1"
    connections = Connections(OpenAIApp(ScriptedBackend(), limits=HttpLimits(max_head_bytes=8192)))
    connection, wire = connections.make(), Wire()
    connection.connection_made(wire)
    data = b"GET " + head + b"\r\n\r\n"
    for piece in (data[:cut], data[cut:]):
        connection.data_received(piece)
    assert wire.written[0].startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert not connections.tasks
    connection.connection_lost(None)


async def test_a_request_has_nothing_of_the_trailers_before_it() -> None:
    first = b"POST /nowhere HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-request-id: mine\r\n\r\n"
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(first)
        assert (await client.answer())[0] == 404
        await client.send(GET_LIVE)
        _, headers = await client.head()
        assert headers["x-request-id"] != "mine"


async def test_a_small_head_may_come_with_much_body() -> None:
    request = post(CHAT, chat("x" * 300, max_tokens=1))
    connections = Connections(OpenAIApp(ScriptedBackend(), limits=HttpLimits(max_head_bytes=200)))
    connection, wire = connections.make(), Wire()
    connection.connection_made(wire)
    for piece in (request[:30], request[30:]):
        connection.data_received(piece)
    await asyncio.wait(connections.tasks)
    assert wire.written[0].startswith(b"HTTP/1.1 200 OK")
    connection.connection_lost(None)


async def test_trailers_without_end_close_the_connection() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    async with running(ScriptedBackend(), max_head_bytes=8192) as address, connected(address) as client:
        await client.send(head)
        client.writer.write(b"a: b\r\n" * 100_000)
        await client.until_closed()


async def test_no_http_at_all_gets_a_400_in_openais_shape() -> None:
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        status, body = await client.answer()
        assert status == 400
        assert json.loads(body)["error"]["message"]


async def test_a_bug_of_ours_is_no_fault_of_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(url: bytes) -> str:
        raise RuntimeError("planted")

    monkeypatch.setattr(connection_module, "_path_of", fail)
    async with running(ScriptedBackend()) as address, connected(address) as client:
        await client.send(GET_LIVE)
        status, body = await client.answer()
        await client.until_closed()
    assert (status, json.loads(body)["error"]["type"]) == (500, "server_error")
    assert "planted" not in body.decode()
    [record] = [record for record in caplog.records if record.name == "dynamo_sdk.http"]
    assert record.exc_info is not None
    assert "planted" in str(record.exc_info[1])


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_over_the_limit_ends_with_413(is_chunked: bool) -> None:
    async with running(ScriptedBackend(), max_body_bytes=10_000) as address, connected(address) as client:
        if is_chunked:
            piece = b"400\r\n" + b"x" * 1024 + b"\r\n"
            await client.send(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + piece * 12
            )
            client.writer.write(piece * 3 + b"0\r\n\r\n")
        else:
            client.writer.write(post("/v1/completions", b"x" * 20_000))
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        assert "at most 10000 bytes" in json.loads(body)["error"]["message"]


async def test_bodies_that_are_too_large_together_are_overload() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    body = chat("x" * 400)
    size = len(json.dumps(body))
    async with running(backend, max_buffered_bytes=size * 3 // 2) as address:
        async with connected(address) as first, connected(address) as second:
            await first.send(post(CHAT, body))
            await backend.until(lambda: backend.num_open == 1)
            await second.send(post(CHAT, body))
            status, refusal = await second.answer()
            assert (status, json.loads(refusal)["error"]["code"]) == (429, "overloaded")
            first.reset()
            await backend.all_closed.wait()
        async with connected(address) as third:
            assert backend.gate is not None
            backend.gate.set()
            await third.send(post(CHAT, body))
            assert (await third.answer())[0] == 200


async def test_a_body_just_within_the_limit_is_read() -> None:
    content = json.dumps(chat("x" * 300)).encode()
    async with running(ScriptedBackend(), max_body_bytes=len(content)) as address:
        async with connected(address) as client:
            await client.send(post(CHAT, content))
            assert (await client.answer())[0] == 200


async def test_more_connections_than_allowed_are_closed() -> None:
    async with running(ScriptedBackend(), max_connections=2) as address:
        async with connected(address) as first, connected(address) as second:
            for client in (first, second):
                await client.send(GET_LIVE)
                assert (await client.answer())[0] == 200
            async with connected(address) as third:
                assert await third.until_closed() == b""
