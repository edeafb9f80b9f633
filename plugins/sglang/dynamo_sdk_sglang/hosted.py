"""``HostProcess``: SGLang in a process of its own, seen from the worker."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import sys
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from dynamo_sdk.errors import ConfigError, DynamoError, EngineFailed, EngineStartError, InvalidRequest
from dynamo_sdk.launch.processes import GuardedProcess

from .messages import (
    Abort,
    Ended,
    FromHost,
    Generate,
    Load,
    LoadAdapter,
    NotStarted,
    Output,
    Pipe,
    Problem,
    Start,
    Started,
    UnloadAdapter,
)
from .translate import error_of

CLOSE_GRACE_S = 10.0
"""How long SGLang may take to end by itself."""
NUM_LINES_KEPT = 200
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception)\b")


class Call:
    """One thing asked of the host. ``is_over``: SGLang holds nothing for it any more."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_over = False
        self._answers: asyncio.Queue[Output | DynamoError | None] = asyncio.Queue()

    def put(self, output: Output) -> None:
        self._answers.put_nowait(output)

    def end(self, error: DynamoError | None) -> None:
        self.is_over = True
        self._answers.put_nowait(error)

    async def next(self) -> Output | None:
        """None at the end. Raises what SGLang raised."""
        await checkpoint_if_cancelled()  # what has come already is taken without a turn of the event loop
        answer = await self._answers.get()
        if isinstance(answer, DynamoError):
            raise answer
        return answer

    async def wait_over(self) -> None:
        """Throws away what still comes."""
        while not self.is_over:
            await self._answers.get()


class HostProcess:
    """``start`` once, ``close`` always. ``on_load`` is told how many tokens of KV are in use."""

    def __init__(self, on_load: Callable[[int], None]) -> None:
        self._on_load = on_load
        self._process: GuardedProcess | None = None
        self._log: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=NUM_LINES_KEPT)
        self._pipe: Pipe[FromHost] = Pipe(FromHost, self._on_message, self._on_lost)
        self._started: asyncio.Future[Started] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count()
        self._lost = asyncio.Event()
        self.is_alive = False

    async def start(self, start: Start, environment: Mapping[str, str]) -> Started:
        """Return when SGLang is up. Raises ``EngineStartError`` and ``ConfigError``."""
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            await loop.create_unix_connection(lambda: self._pipe, sock=ours)
            self._process = await GuardedProcess.start(
                [sys.executable, "-m", "dynamo_sdk_sglang.host", str(theirs.fileno())],
                worker_id=f"sglang-{uuid.uuid4()}",
                environment=environment,
                grace_s=CLOSE_GRACE_S,
                pass_fds=[theirs.fileno()],
            )
        self._log = asyncio.create_task(self._pass_on_log(self._process))
        self._pipe.send(start)
        started = await self._started
        self.is_alive = True
        return started

    async def close(self) -> None:
        """Fail all calls, and return when no process is left."""
        has_served = self.is_alive
        self._settle(EngineStartError("the engine was closed while it started"))
        self._pipe.close()
        self._end_calls("the engine was closed")
        process, self._process = self._process, None
        if process is not None:
            if has_served:  # then it knows by itself that this is the end, and takes its memory along
                with anyio.move_on_after(CLOSE_GRACE_S):
                    await process.wait()
            process.kill()
            await process.wait()
        if self._log is not None:
            await asyncio.wait([self._log])

    def generate(self, arguments: dict[str, object]) -> Call:
        call = self._open()
        self._pipe.send(Generate(call.number, arguments))
        return call

    def abort(self, call: Call) -> None:
        if not call.is_over:
            self._pipe.send(Abort(call.number))

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises ``InvalidRequest``."""
        call = self._open()
        self._pipe.send(LoadAdapter(call.number, name, path))
        try:
            await call.next()
        except InvalidRequest as error:
            raise InvalidRequest(f"adapter {name!r} cannot be loaded: {error}", param="lora") from error

    async def unload_adapter(self, name: str) -> None:
        call = self._open()
        self._pipe.send(UnloadAdapter(call.number, name))
        await call.next()

    def _open(self) -> Call:
        if not self.is_alive:
            raise EngineFailed("SGLang does not run")
        call = Call(next(self._numbers))
        self._calls[call.number] = call
        return call

    def _on_message(self, message: FromHost) -> None:
        match message:
            case Output(number):
                self._calls[number].put(message)
            case Ended(number, problem):
                self._calls.pop(number).end(None if problem is None else error_of(problem))
            case Load(num_used_tokens):
                self._on_load(num_used_tokens)
            case Started():
                self._settle(message)
            case NotStarted(problem):
                self._settle(_start_error(problem))

    async def wait_lost(self) -> None:
        """Return when the process is gone, or was closed."""
        await self._lost.wait()

    def _on_lost(self) -> None:
        self._lost.set()
        self._end_calls("SGLang's process has ended")
        if self._started is not None and not self._started.done():
            self._telling = asyncio.create_task(self._tell_why())

    async def _tell_why(self) -> None:
        """The log comes by another way than the end, and has the cause."""
        if self._log is not None:
            await asyncio.wait([self._log], timeout=CLOSE_GRACE_S)
        self._settle(EngineStartError(f"SGLang did not start: {cause_in(self._lines)}"))

    def _settle(self, result: Started | Exception) -> None:
        started = self._started
        if started is None or started.done():
            return
        if isinstance(result, Exception):
            started.set_exception(result)
            started.exception()  # who asked may have gone
        else:
            started.set_result(result)

    def _end_calls(self, why: str) -> None:
        self.is_alive = False
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(EngineFailed(why))

    async def _pass_on_log(self, process: GuardedProcess) -> None:
        rest = ""
        async for piece in process.output():
            text = piece.decode(errors="replace")
            sys.stderr.write(text)
            *lines, rest = (rest + text).split("\n")
            self._lines.extend(lines)


def _start_error(problem: Problem) -> Exception:
    if "ConfigError" in problem.kinds:
        return ConfigError(problem.text, param=problem.param)
    if "ImportError" in problem.kinds:
        return EngineStartError(
            f"SGLang cannot be imported ({problem.text}); try: pip install 'dynamo-sdk-sglang[engine]', or "
            "name the environment that has it: services.X.python"
        )
    return EngineStartError(f"SGLang did not start: {problem.kinds[0]}: {problem.text}")


def cause_in(lines: Sequence[str]) -> str:
    """The last exception in a log; without one, its last line."""
    for line in reversed(lines):
        if _EXCEPTION.match(line):
            return line
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
