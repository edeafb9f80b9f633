"""What shadow routers would have done, as metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dynamo_sdk.interfaces import Router
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.routing.shadow import ShadowRouter, ShadowStatistics

from .dispatch import ModelRoute


class ShadowMeter:
    """``count`` from time to time: it adds what has come since."""

    def __init__(self, routes: Iterable[ModelRoute], metrics: FrontendMetrics) -> None:
        routers: list[tuple[str, Router]] = [
            (route.name, router) for route in routes for router in route.routers.values()
        ]
        self._routers = [(model, router) for model, router in routers if isinstance(router, ShadowRouter)]
        self._metrics = metrics
        self._counted: dict[tuple[int, str], ShadowStatistics] = {}

    def count(self) -> None:
        for number, (model, router) in enumerate(self._routers):
            for shadow, now in router.statistics.items():
                before = self._counted.get((number, shadow), ShadowStatistics())
                series = self._metrics.shadow(model, shadow)
                series.decisions.inc(now.num_decisions - before.num_decisions)
                series.different.inc(now.num_different - before.num_different)
                series.failures.inc(now.num_failures - before.num_failures)
                series.regret_s.inc(now.regret_s - before.regret_s)
                self._counted[number, shadow] = replace(now)
