"""A graph on real processes, and a look at it from outside: its metrics, its workers, their books."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from dynamo_sdk.runtime.clock import SystemClock
from dynamo_sdk.runtime.discovery import EmbeddedDiscovery
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.network import SocketNetwork
from dynamo_sdk.services import Worker
from dynamo_sdk.types import WorkerRecord

from .running import COMMAND, RunningGraph

REPOSITORY = Path(__file__).parents[2]
SETTLE_S = 15.0  # less than a ticket lives: blocks must come free at once, not by expiry


@dataclass(frozen=True, slots=True)
class Served:
    """``url`` is empty where the graph has no frontend; ``address`` is what ``--join`` takes."""

    graph: RunningGraph
    url: str
    address: str


@contextmanager
def serve(target: str, *words: str) -> Iterator[Served]:
    """``dynamo-sdk run target`` in the folder of the repository, from ready to its end."""
    process = subprocess.Popen(
        [*COMMAND, "run", target, "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
    )
    graph = RunningGraph(process)
    try:
        url = graph.wait_ready()
        yield Served(graph, url, graph.wait_for(r"--join (\S+)")[1])
    finally:
        graph.close()


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    samples: list[tuple[str, dict[str, str], float]]

    @classmethod
    def read(cls, text: str) -> Metrics:
        families = text_string_to_metric_families(text)
        return cls([(sample.name, sample.labels, sample.value) for f in families for sample in f.samples])

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The series of one name, summed over all labels but ``label``."""
        found: dict[str, float] = {}
        for sample, given, value in self.samples:
            if sample == name and labels.items() <= given.items():
                found[given[label]] = found.get(given[label], 0.0) + value
        return found

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of one name that have these labels."""
        return sum(
            value
            for sample, given, value in self.samples
            if sample == name and labels.items() <= given.items()
        )


async def scrape(client: httpx.AsyncClient) -> Metrics:
    return Metrics.read((await client.get("/metrics")).raise_for_status().text)


def busy_series(metrics: Metrics) -> dict[str, float]:
    """What must be zero when nothing runs, and is not."""
    at_rest = re.compile(
        r"dynamo_frontend_(inflight|queued)_requests"
        r"|dynamo_component_((inflight|running|waiting)_requests|kvstats_active_blocks)"
    )
    found = [(name, labels, value) for name, labels, value in metrics.samples if at_rest.fullmatch(name)]
    assert found, "the scrape has none of the series"
    return {f"{name} {labels}": value for name, labels, value in found if value}


async def wait_at_rest(client: httpx.AsyncClient) -> Metrics:
    """A scrape of the graph at rest; fails, with what is not, when that does not come."""
    deadline_s = time.monotonic() + SETTLE_S
    while busy := busy_series(metrics := await scrape(client)):
        assert time.monotonic() < deadline_s, f"still busy: {busy}"
        await asyncio.sleep(0.05)
    return metrics


class Watch:
    """The workers of a running graph, as the graph's own services see them: ``async with Watch(address)``."""

    def __init__(self, address: str) -> None:
        self._clock = SystemClock()
        self._network = SocketNetwork()
        self._discovery = EmbeddedDiscovery(address, secret=None, network=self._network, clock=self._clock)
        self._fleet = FleetView(self._discovery)

    async def __aenter__(self) -> Self:
        await self._fleet.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._fleet.close()
        await self._discovery.close()

    def ready(self, service: str) -> list[WorkerRecord]:
        return [record for record in self._fleet.of_service(service) if record.is_ready]

    async def wait_until(self, is_met: Callable[[], bool]) -> None:
        """Return when ``is_met`` came true, judged after each change."""
        async with asyncio.timeout(60):
            await self._fleet.wait_until(lambda _fleet: is_met())

    async def check_integrity(self, *services: str) -> None:
        """Ask every worker of these services whether its books add up."""
        for service in services:
            records = self.ready(service)
            assert records, f"no worker of {service}"
            client = ServiceClient(service, Worker, self._fleet, self._network, self._clock, None)
            try:
                for record in records:
                    await client.call(record.worker_id, "check_integrity")
            finally:
                await client.close()
