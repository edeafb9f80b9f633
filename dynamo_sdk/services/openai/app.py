"""The ASGI application: routes by path, answers every error in OpenAI's shape, counts outcomes.

::

    POST /v1/chat/completions  /v1/completions  /v1/embeddings
    GET  /v1/models  /v1/models/{id}  /health  /live  /metrics  /openapi.json
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dynamo_sdk.errors import DeadlineExceeded, DynamoError, NotFound, Unavailable
from dynamo_sdk.metrics import FrontendMetrics, Outcome

from .backend import Backend
from .disconnect import CancelOnDisconnect
from .errors import MethodNotAllowed, error_event, to_http
from .exchange import BodyBudget, ClientGone, Exchange, Receive, Scope, Send
from .limits import HttpLimits
from .model_directory import ModelDirectory
from .routes import MODELS_PREFIX, Received, Routes

Handler = Callable[[Exchange, Received], Awaitable[None]]

_log = logging.getLogger("dynamo_sdk.http")


class OpenAIApp:
    """Pure ASGI, so that any server can run it; ``server.serve`` is ours."""

    def __init__(
        self, backend: Backend, *, metrics: FrontendMetrics | None = None, limits: HttpLimits | None = None
    ) -> None:
        self.limits = limits or HttpLimits()
        self.metrics = metrics or FrontendMetrics()
        self.directory = ModelDirectory(backend)
        routes = Routes(backend, self.metrics, self.limits, self.directory)
        self._budget = BodyBudget(self.limits.max_buffered_bytes)
        self._model = routes.model
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": routes.chat_completions},
            "/v1/completions": {"POST": routes.completions},
            "/v1/embeddings": {"POST": routes.embeddings},
            "/v1/models": {"GET": routes.models},
            "/health": {"GET": routes.health},
            "/live": {"GET": routes.live},
            "/metrics": {"GET": routes.prometheus},
            "/openapi.json": {"GET": routes.openapi},
        }

    @property
    def routes(self) -> list[str]:
        """The paths that are served, but for those below ``/v1/models/``."""
        return sorted(self._routes)

    def add_route(self, method: str, path: str, handler: Handler) -> None:
        """Serve one more path; for what stands beside the API, such as a dashboard."""
        self._routes.setdefault(path, {})[method] = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # lifespan and websockets are not ours; servers take silence as "not supported"
        exchange = Exchange(scope, receive, send, limits=self.limits, budget=self._budget)
        received = Received(b"", time.monotonic())
        outcome = Outcome.ERROR
        try:
            await self._answer(exchange, received)
            outcome = _outcome(exchange.status)
        except ClientGone:
            outcome = Outcome.CANCELLED
            _log.info("%s %s %r: the client left", exchange.request_id, exchange.method, exchange.path)
        except asyncio.CancelledError:
            # Only the server that runs this task cancels it, when it ends; the client is told why.
            _log.info("%s %s %r: cancelled by shutdown", exchange.request_id, exchange.method, exchange.path)
            await self._send_error(exchange, Unavailable("the server is shutting down; try again"))
        except Exception as error:
            outcome = _outcome(to_http(error).status)
            self._log_error(exchange, error)
            await self._send_error(exchange, error)
        finally:
            exchange.close()
            self._count(exchange, received, outcome)

    async def _answer(self, exchange: Exchange, received: Received) -> None:
        handler = self._handler(exchange)
        received.body = await exchange.read_body()
        received.at_s = time.monotonic()
        async with CancelOnDisconnect(exchange):
            try:
                async with asyncio.timeout(self.limits.deadline_s):
                    await handler(exchange, received)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"the request was not done within {self.limits.deadline_s:g} seconds"
                ) from None

    def _handler(self, exchange: Exchange) -> Handler:
        path, method = exchange.path, exchange.method
        by_method = self._routes.get(path)
        if by_method is None and path.startswith(MODELS_PREFIX):
            by_method = {"GET": self._model}
        if by_method is None:
            raise NotFound(f"there is no route {path[:200]!r}; there is {', '.join(self.routes)}")
        handler = by_method.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise MethodNotAllowed(
                f"{path[:200]} does not take {method[:20]}; allowed is {', '.join(by_method)}"
            )
        return handler

    async def _send_error(self, exchange: Exchange, error: Exception) -> None:
        if exchange.is_answered:
            return
        if exchange.is_streaming:
            await exchange.end_stream(error_event(error))
        elif exchange.status is None:
            await exchange.send_error(error)

    def _count(self, exchange: Exchange, received: Received, outcome: Outcome) -> None:
        if exchange.method != "POST" or exchange.path not in self._routes:
            return
        endpoint = exchange.path.removeprefix("/v1/").replace("/", "_")
        self.metrics.count_request(model=received.model, endpoint=endpoint, outcome=outcome)
        if received.model:
            model = self.metrics.model(received.model)
            model.inflight.dec()
            model.duration_s.observe(time.monotonic() - received.at_s)

    def _log_error(self, exchange: Exchange, error: Exception) -> None:
        where = (exchange.request_id, exchange.method, exchange.path)
        if not isinstance(error, DynamoError):
            _log.error("%s %s %r failed", *where, exc_info=error)
        elif to_http(error).status >= 500:
            _log.warning("%s %s %r: %s: %s", *where, error.code, error)
        else:
            _log.debug("%s %s %r: %s: %s", *where, error.code, error)


def _outcome(status: int | None) -> Outcome:
    if status is None or status >= 500:
        return Outcome.ERROR
    return Outcome.REJECTED if status >= 400 else Outcome.SUCCESS
