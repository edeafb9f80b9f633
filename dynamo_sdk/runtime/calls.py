"""Endpoints across processes: real types in, bytes on the wire, real types out.

``EndpointCodec`` turns one ``@endpoint`` into bytes and back, for both sides; ``serve_endpoints`` runs
them for incoming streams; ``call_unary`` and ``call_streaming`` make the calls. Arguments travel as one
msgpack array in the order of the parameters; pydantic models travel as their fields.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, Self, cast

import msgspec
from pydantic import BaseModel, ValidationError

from dynamo_sdk.errors import DynamoError, GraphError, InvalidRequest, NotFound, ProtocolError
from dynamo_sdk.graph.endpoints import EndpointSpec

from .client import ClientConnection, PushedStream, QueuedStream
from .deadline import deadline_scope
from .server import Handler, ServerStream
from .sources import open_source

UNREADABLE = (msgspec.MsgspecError, ValidationError, UnicodeDecodeError)
"""What decoding of a peer's bytes can raise."""

PING = "_ping"
"""A method that every server answers, with nothing: is anybody there?"""


def _encode_foreign(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(
        f"{type(value).__name__} cannot cross processes; use msgspec structs, dataclasses or pydantic"
    )


def _decode_foreign(kind: type, value: object) -> object:
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return kind.model_validate(value)
    raise TypeError(f"{kind} cannot cross processes")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_foreign)


class EndpointCodec:
    """Bytes for one endpoint. Raises ``GraphError`` when its types cannot be carried."""

    def __init__(self, spec: EndpointSpec, service: str) -> None:
        self.spec = spec
        self.method = f"{service}.{spec.name}"
        names = list(spec.parameters)
        try:
            self._arguments: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
                tuple[tuple(spec.parameters[name] for name in names)],  # type: ignore[misc]
                dec_hook=_decode_foreign,
            )
            self._result: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
                spec.result, dec_hook=_decode_foreign
            )
        except TypeError as error:
            raise GraphError(f"endpoint {self.method}: its types cannot cross processes: {error}") from error

    def encode_arguments(self, args: tuple[object, ...], kwargs: dict[str, object]) -> bytes:
        """Raises ``TypeError`` exactly as calling the method itself would."""
        if not kwargs and len(args) == len(self.spec.parameters):
            return _encoder.encode(args)
        bound = self.spec.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _encoder.encode(tuple(bound.arguments[name] for name in self.spec.parameters))

    def decode_arguments(self, payload: msgspec.Raw) -> dict[str, object]:
        """Raises ``InvalidRequest`` for arguments of other types than declared."""
        try:
            values = self._arguments.decode(payload)
        except UNREADABLE as error:
            raise InvalidRequest(f"{self.method}: bad arguments: {error}") from error
        return dict(zip(self.spec.parameters, values, strict=True))

    def encode_result(self, result: object) -> bytes:
        return _encoder.encode(result)

    def decode_result(self, payload: msgspec.Raw) -> Any:
        try:
            return self._result.decode(payload)
        except UNREADABLE as error:
            raise ProtocolError(
                f"{self.method}: the answer has another type than declared: {error}"
            ) from error


def codecs_of(specs: Mapping[str, EndpointSpec], service: str) -> dict[str, EndpointCodec]:
    return {name: EndpointCodec(spec, service) for name, spec in specs.items()}


async def call_unary(
    connection: ClientConnection, codec: EndpointCodec, payload: bytes, *, timeout_s: float | None
) -> Any:
    stream = connection.open(codec.spec.name, payload, timeout_s=timeout_s)
    async with aclosing(stream):
        async for item in stream:
            return codec.decode_result(item)
    raise ProtocolError(f"{codec.method} ended without an answer")


class RemoteStream:
    """A streaming call as an async iterator of decoded items.

    The call starts with the first read. ``aclose`` (or leaving ``aclosing``) cancels it over there.
    """

    __slots__ = ("_codec", "_error", "_loop", "_open", "_stream")

    def __init__(self, codec: EndpointCodec, opening: Callable[[], Awaitable[QueuedStream]]) -> None:
        self._codec = codec
        self._open: Callable[[], Awaitable[QueuedStream]] | None = opening
        self._stream: QueuedStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: DynamoError | None = None

    def __del__(self) -> None:
        """``async for ... break`` closes nothing: a stream that was dropped must not run on over there."""
        stream, loop = self._stream, self._loop
        if stream is not None and loop is not None and not stream.is_over and not loop.is_closed():
            loop.call_soon_threadsafe(stream.fail, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._stream is None:
            if self._open is None:
                raise StopAsyncIteration
            self._stream = await self._open()
            self._loop = asyncio.get_running_loop()
            if self._error is not None:
                self._stream.fail(self._error)
        return self._codec.decode_result(await anext(self._stream))

    def fail(self, error: DynamoError) -> None:
        """End the call from this side: its reader gets ``error``, the server a cancel. While the call is
        still connecting, as soon as that is over."""
        self._error = error
        if self._stream is not None:
            self._stream.fail(error)

    async def aclose(self) -> None:
        self._open = None
        if self._stream is not None:
            await self._stream.aclose()


class CallListener(Protocol):
    """Is given what a call answers, decoded, in the event-loop tick in which it arrives. Must not raise or
    block."""

    def on_item(self, item: Any) -> None: ...

    def on_end(self, error: DynamoError | None) -> None:
        """Nothing follows; ``error`` is why, unless the call has ended as it should."""


class PushedCall:
    """A streaming call that gives its items to a listener; it tells it nothing before ``start`` returns."""

    __slots__ = ("_codec", "_is_paused", "_listener", "_opening", "_stream")

    def __init__(self, codec: EndpointCodec, listener: CallListener) -> None:
        self._codec = codec
        self._listener: CallListener | None = listener
        self._stream: PushedStream | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_paused = False

    def start(self, connection: ClientConnection, payload: bytes, *, timeout_s: float | None) -> None:
        """On a connection that is there."""
        if self._listener is None:
            return
        try:
            self._stream = connection.push(self._codec.spec.name, payload, self, timeout_s=timeout_s)
        except DynamoError as error:
            asyncio.get_running_loop().call_soon(self.on_end, error)
            return
        if self._is_paused:
            self._stream.pause()

    def start_later(self, opening: Callable[[], Awaitable[None]]) -> None:
        """``opening`` connects and then calls ``start``."""

        async def run() -> None:
            try:
                await opening()
            except DynamoError as error:
                self.on_end(error)

        self._opening = asyncio.get_running_loop().create_task(run())

    def pause(self) -> None:
        """Items wait until ``resume``, and at some point the server, too."""
        self._is_paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._stream is not None:
            self._stream.resume()

    def fail(self, error: DynamoError) -> None:
        """End the call from this side: the listener gets ``error``, the server a cancel."""
        listener = self._listener
        self.cancel()
        if listener is not None:
            listener.on_end(error)

    def cancel(self) -> None:
        """End the call; the listener hears nothing more. Idempotent."""
        self._listener = None
        if self._stream is not None:
            self._stream.cancel()
        elif self._opening is not None:
            self._opening.cancel()

    # -- ItemListener

    def on_item(self, item: msgspec.Raw) -> None:
        try:
            value = self._codec.decode_result(item)
        except ProtocolError as error:
            self.fail(error)
            return
        if self._listener is not None:
            self._listener.on_item(value)

    def on_end(self, error: DynamoError | None) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_end(error)


def call_streaming(
    connection: ClientConnection, codec: EndpointCodec, payload: bytes, *, timeout_s: float | None
) -> RemoteStream:
    async def opening() -> QueuedStream:
        return connection.open(codec.spec.name, payload, timeout_s=timeout_s)

    return RemoteStream(codec, opening)


async def ping(connection: ClientConnection, *, timeout_s: float | None) -> None:
    """Return when the server has answered; raises ``WireError``."""
    stream = connection.open(PING, _encoder.encode(()), timeout_s=timeout_s)
    async with aclosing(stream):
        async for _ in stream:
            return


def serve_endpoints(instance: object, codecs: Mapping[str, EndpointCodec]) -> Handler:
    """A handler that answers calls with the methods of ``instance``."""

    async def handle(stream: ServerStream) -> None:
        if stream.method == PING:
            await stream.send(_encoder.encode(None))
            return
        codec = codecs.get(stream.method)
        if codec is None:
            raise NotFound(f"no endpoint {stream.method!r} (there are: {', '.join(codecs) or 'none'})")
        arguments = codec.decode_arguments(stream.payload)
        method = getattr(instance, codec.spec.name)
        with deadline_scope(stream.deadline_s):
            if (source := open_source(method, instance, **arguments)) is not None:
                await stream.send_all(source, codec.encode_result)
            elif codec.spec.is_streaming:
                generator = cast(Callable[..., AsyncGenerator[object, None]], method)(**arguments)
                async with aclosing(generator):
                    async for item in generator:
                        await stream.send(codec.encode_result(item))
            else:
                result = await cast(Callable[..., Awaitable[object]], method)(**arguments)
                await stream.send(codec.encode_result(result))

    return handle
