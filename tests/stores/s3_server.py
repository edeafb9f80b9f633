"""A real S3 server in a process of its own, and a proxy that spoils its answers."""

import asyncio
import contextlib
import re
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

BUCKET = "kv-blocks"


@contextmanager
def s3_server():
    """Yields its URL; ``BUCKET`` exists."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("s3_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            httpx.put(f"{url}/{BUCKET}", trust_env=False).raise_for_status()
            yield url
        finally:
            process.kill()


class BadProxy:
    """Passes requests on. ``fault``: of GET answers with a body, "503" (of all requests), "cut" (half the
    body, then the end of the connection), "flip" (one bit), "hang" (of all: no answer). ``requests``: what
    came, as "GET /path"."""

    def __init__(self, url):
        self._target = urlsplit(url)
        self.fault = None
        self.requests = []
        self.url = ""
        self.tasks = set()

    async def answer(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self._answer_all(reader, writer)
        await _close(writer)

    async def _answer_all(self, reader, writer):
        while True:
            request = await _message(reader)
            self.requests.append(" ".join(request.split(b"\r\n", 1)[0].decode().split()[:2]))
            if self.fault == "hang":
                await reader.read()
                return
            if self.fault == "503":
                writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n")
                continue
            server_reader, server_writer = await asyncio.open_connection(
                self._target.hostname, self._target.port
            )
            try:
                server_writer.write(request)
                is_head = request.startswith(b"HEAD")
                answer = await _message(server_reader, has_body=not is_head)
            finally:
                await _close(server_writer)
            if request.startswith(b"GET"):
                answer = self._spoilt(answer)
            writer.write(answer)
            await writer.drain()
            if self.fault == "cut" and request.startswith(b"GET"):
                return

    def _spoilt(self, answer):
        head, body = answer.split(b"\r\n\r\n", 1)
        middle = len(body) // 2
        if self.fault == "cut":
            body = body[:middle]
        if self.fault == "flip":
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return head + b"\r\n\r\n" + body


async def _close(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _message(reader, *, has_body=True):
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return head + (await reader.readexactly(int(length[1])) if length and has_body else b"")


@asynccontextmanager
async def bad_proxy(url):
    proxy = BadProxy(url)
    server = await asyncio.start_server(proxy.answer, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy.tasks:
            task.cancel()
        if proxy.tasks:
            await asyncio.wait(proxy.tasks)
