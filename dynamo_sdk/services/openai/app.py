"""The HTTP application: routes by path, answers every error in OpenAI's shape, counts outcomes.

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
from .errors import MethodNotAllowed, error_event, to_http
from .exchange import Exchange
from .limits import HttpLimits
from .model_directory import ModelDirectory
from .openapi import Operation
from .routes import MODELS_PREFIX, Received, Routes

Handler = Callable[[Exchange, Received], Awaitable[None]]

_log = logging.getLogger("dynamo_sdk.http")


class OpenAIApp:
    """What ``server.serve`` serves."""

    def __init__(
        self, backend: Backend, *, metrics: FrontendMetrics | None = None, limits: HttpLimits | None = None
    ) -> None:
        self.limits = limits or HttpLimits()
        self.metrics = metrics or FrontendMetrics()
        self.directory = ModelDirectory(backend)
        routes = Routes(backend, self.metrics, self.limits, self.directory)
        self._model = routes.model
        self._added = routes.added
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

    def add_operation(self, operation: Operation, handler: Handler) -> None:
        """The same for a part of the API: ``/openapi.json`` names it."""
        self.add_route(operation.method, operation.path, handler)
        self._added.append(operation)

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request whose body is there, whatever happens."""
        received = Received(exchange.body, time.monotonic())
        # No `asyncio.timeout`, at three times the price: nothing is awaited behind a cancellation.
        deadline = asyncio.get_running_loop().call_later(self.limits.deadline_s, exchange.expire)
        try:
            await self._handler(exchange)(exchange, received)
            outcome = _outcome(exchange.status)
        except (Exception, asyncio.CancelledError) as error:
            outcome = self._conclude(exchange, error)
        finally:
            deadline.cancel()
            exchange.close()
        self._count(exchange, received, outcome)

    def refuse(self, exchange: Exchange, error: DynamoError) -> None:
        """Answer a request whose body will not be read."""
        outcome = self._conclude(exchange, error)
        exchange.close()
        self._count(exchange, Received(b"", time.monotonic()), outcome)

    def _conclude(self, exchange: Exchange, error: BaseException) -> Outcome:
        """Tell whoever still listens what has ended the work."""
        where = (exchange.request_id, exchange.method, exchange.path)
        if exchange.is_gone:
            _log.info("%s %s %r: the client left", *where)
            return Outcome.CANCELLED
        if isinstance(error, asyncio.CancelledError):
            if exchange.has_expired:
                error = DeadlineExceeded(
                    f"the request was not done within {self.limits.deadline_s:g} seconds"
                )
            else:  # only the server cancels its tasks, when it ends
                error = Unavailable("the server is shutting down; try again")
        assert isinstance(error, Exception)
        if not isinstance(error, DynamoError):
            _log.error("%s %s %r failed", *where, exc_info=error)
        elif to_http(error).status >= 500:
            _log.warning("%s %s %r: %s: %s", *where, error.code, error)
        else:
            _log.debug("%s %s %r: %s: %s", *where, error.code, error)
        if not exchange.is_answered:
            if exchange.is_streaming:
                exchange.end_stream(error_event(error))
            else:
                exchange.send_error(error)
        return _outcome(to_http(error).status)

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

    def _count(self, exchange: Exchange, received: Received, outcome: Outcome) -> None:
        if exchange.method != "POST" or exchange.path not in self._routes:
            return
        endpoint = exchange.path.removeprefix("/v1/").replace("/", "_")
        self.metrics.count_request(model=received.model, endpoint=endpoint, outcome=outcome)
        if received.model:
            model = self.metrics.model(received.model)
            model.inflight.dec()
            model.duration_s.observe(time.monotonic() - received.at_s)


def _outcome(status: int | None) -> Outcome:
    if status is None or status >= 500:
        return Outcome.ERROR
    return Outcome.REJECTED if status >= 400 else Outcome.SUCCESS
