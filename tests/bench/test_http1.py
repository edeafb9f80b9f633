from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dynamo_sdk.bench.http1 import HttpClient, WholeBody, get
from dynamo_sdk.bench.target import Target
from dynamo_sdk.runtime.clock import SystemClock

from .server import Respond, chunked, serving, whole


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def saying(*answers: bytes, closing: bool = False) -> Respond:
    """The n-th answer for the n-th request, the last one for all that follow."""

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(number, len(answers) - 1)])
        if closing:
            writer.close()

    return respond


async def asked(client: HttpClient, target: Target) -> WholeBody:
    answer = WholeBody()
    await client.send(target.get("/x"), answer)
    return answer


@pytest.mark.parametrize(
    ("response", "closing"),
    [
        (whole(b"hello"), False),
        (chunked(b"he", b"llo"), False),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", True),
    ],
)
def test_bodies_are_read_to_their_end(response: bytes, closing: bool) -> None:
    async def main() -> None:
        async with serving(saying(response, closing=closing)) as (target, seen):
            client = HttpClient(target, SystemClock())
            for _ in range(3):
                answer = await asked(client, target)
                assert (answer.code, answer.content, answer.failure) == (200, b"hello", None)
            assert seen.heads[0].startswith(b"GET /v1/x HTTP/1.1\r\n")
            assert client.num_connections == (3 if closing else 1)
            client.close()

    run(main())


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 OK\r\n", whole(b"hello")[:-1], chunked(b"hello")[:-3]])
def test_a_close_in_between_fails(cut: bytes) -> None:
    async def main() -> None:
        async with serving(saying(cut, closing=True)) as (target, _):
            answer = await asked(HttpClient(target, SystemClock()), target)
            assert answer.failure is not None
            assert "closed the connection" in answer.failure

    run(main())


def test_a_kept_connection_that_was_closed_is_replaced_once() -> None:
    async def main() -> None:
        async def respond(number: int, writer: asyncio.StreamWriter) -> None:
            if number == 1:
                writer.close()  # the second request, on the kept connection
            else:
                writer.write(whole(b"hello"))

        async with serving(respond) as (target, seen):
            client = HttpClient(target, SystemClock())
            answers = [await asked(client, target) for _ in range(2)]
            assert [answer.content for answer in answers] == [b"hello", b"hello"]
            assert [answer.failure for answer in answers] == [None, None]
            assert (len(seen.heads), client.num_connections) == (3, 2)
            client.close()

    run(main())


def test_a_kept_connection_that_breaks_in_an_answer_fails() -> None:
    async def main() -> None:
        async def respond(number: int, writer: asyncio.StreamWriter) -> None:
            writer.write(whole(b"hello") if number == 0 else whole(b"hello")[:-1])
            if number:
                writer.close()

        async with serving(respond) as (target, seen):
            client = HttpClient(target, SystemClock())
            assert (await asked(client, target)).failure is None
            assert (await asked(client, target)).failure is not None
            assert len(seen.heads) == 2

    run(main())


def test_what_is_no_http_fails() -> None:
    async def main() -> None:
        async with serving(saying(b"SSH-2.0-x\r\n\r\n")) as (target, _):
            answer = await asked(HttpClient(target, SystemClock()), target)
            assert "no HTTP/1.1 response" in (answer.failure or "")

    run(main())


def test_nobody_there_fails() -> None:
    async def main() -> None:
        async with serving(saying(b"")) as (target, _):
            pass
        answer = await get(target, "/models")
        assert answer.code == 0
        assert "refused" in (answer.failure or "") or "Connect call failed" in (answer.failure or "")

    run(main())


def test_a_cancelled_request_closes_its_connection() -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def respond(number: int, writer: asyncio.StreamWriter) -> None:
            arrived.set()

        async with serving(respond) as (target, seen):
            client = HttpClient(target, SystemClock())
            task = asyncio.create_task(asked(client, target))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await seen.ended.get()
            assert client._idle == []

    run(main())


def test_a_body_that_is_kept_whole_is_bounded() -> None:
    body = WholeBody(max_bytes=4)
    body.body(0.0, b"abc")
    body.body(0.0, b"def")
    assert body.content == b"abcd"
