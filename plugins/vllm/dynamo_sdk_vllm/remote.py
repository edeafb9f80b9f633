"""``VllmRemoteEngine``: a vLLM server that runs already, with the KV events that it publishes."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import msgspec
from pydantic import Field

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.openai.config import OpenAIConfig
from dynamo_sdk.engines.openai.engine import OpenAIEngine
from dynamo_sdk.engines.zmq_events import EventEndpoints, ZmqEventSource
from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.interfaces import EngineFacts, EngineSetup, PublishesKVEvents
from dynamo_sdk.types import GenerateRequest, KVEventBatch

_CACHE_SERIES = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class VllmRemoteConfig(OpenAIConfig):
    """As for ``openai``, and where the events are, if the server does not say it itself."""

    kv_events: tuple[str, ...] = Field(
        default=(), description="by rank, where the server publishes; without it, what the server says"
    )
    kv_replays: tuple[str, ...] = Field(default=(), description="by rank, where the server can be asked")
    kv_topic: str = Field(default="", description="the topic of the events; empty takes any")


class EventSource(msgspec.Struct):
    """One of ``GET /kv_event_sources``."""

    endpoint: str | None = None
    replay_endpoint: str | None = None


class VllmRemoteEngine(OpenAIEngine, PublishesKVEvents):
    """See ``OpenAIEngine``. Refuses a server that publishes no events: ``openai`` is for those."""

    def __init__(self, setup: EngineSetup, config: VllmRemoteConfig) -> None:
        super().__init__(setup, config)
        self._remote = config
        self._kv_events: Feed[KVEventBatch] = Feed()
        self._source: ZmqEventSource | None = None

    async def start(self) -> EngineFacts:
        facts = await super().start()
        try:
            endpoints = event_endpoints(self._remote) or await self._ask_for_endpoints()
            block_size = block_size_in((await self._get("/metrics")).text)
        except (httpx.HTTPError, msgspec.MsgspecError, ValueError) as error:
            raise EngineStartError(
                f"{self._where} does not say where its KV events are ({error}); set args.kv_events"
            ) from error
        if not endpoints:
            raise EngineStartError(
                f"{self._where} publishes no KV events; start it with --kv-events-config, "
                "or use engine: openai"
            )
        self._source = ZmqEventSource(
            endpoints, self._kv_events.publish, topic=self._remote.kv_topic, block_size=block_size
        )
        self._source.start()
        return msgspec.structs.replace(facts, block_size=block_size, dp_size=len(endpoints))

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()
        await super().close()

    def headers_of(self, request: GenerateRequest) -> dict[str, str]:
        return {} if request.dp_rank is None else {"X-data-parallel-rank": str(request.dp_rank)}

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return () if self._source is None else self._source.snapshot()

    async def _ask_for_endpoints(self) -> list[EventEndpoints]:
        host = urlsplit(self._where).hostname or "127.0.0.1"
        said = msgspec.json.decode((await self._get("/kv_event_sources")).content)
        return said_endpoints(said, host=host)

    async def _get(self, path: str) -> httpx.Response:
        assert self._client is not None
        return (await self._client.get(path)).raise_for_status()


def event_endpoints(config: VllmRemoteConfig) -> list[EventEndpoints]:
    """What the deploy file says. Raises ``ValueError`` for replays that do not match."""
    replays: tuple[str | None, ...] = config.kv_replays or (None,) * len(config.kv_events)
    return [
        EventEndpoints(dp_rank=rank, publisher=publisher, replay=replay)
        for rank, (publisher, replay) in enumerate(zip(config.kv_events, replays, strict=True))
    ]


def said_endpoints(said: object, *, host: str) -> list[EventEndpoints]:
    """What a server says, by rank, as addresses that can be connected to: ``*`` is ``host``."""
    sources = msgspec.convert(said, dict[int, EventSource], strict=False)
    return [
        EventEndpoints(
            dp_rank=rank,
            publisher=source.endpoint.replace("*", host),
            replay=None if source.replay_endpoint is None else source.replay_endpoint.replace("*", host),
        )
        for rank, source in sorted(sources.items())
        if source.endpoint is not None
    ]


def block_size_in(metrics: str) -> int | None:
    """Tokens per KV block, as vLLM's metrics say; None where they do not."""
    labels = _CACHE_SERIES.search(metrics)
    size = dict(_LABEL.findall(labels[1])).get("block_size", "") if labels else ""
    return int(size) if size.isdigit() else None
