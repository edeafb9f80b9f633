"""The parity doctor in graphs of processes: over real sockets, engines report the keys that it predicts."""

from __future__ import annotations

import httpx
import pytest

from .running import run_graph

MODEL = ("--set", "models.demo.path=demo", "--set", "models.demo.router=kv")


@pytest.mark.parametrize("engine", ["mocker", "torch"])
@pytest.mark.parametrize(("name", "services"), [("graph", ("Prefill", "Decode")), ("aggregated", ("Whole",))])
def test_engines_report_the_keys_that_were_predicted(
    engine: str, name: str, services: tuple[str, ...]
) -> None:
    with run_graph(*MODEL, name=name, engine=engine) as graph:
        for service in services:
            graph.wait_for(rf"parity of {service}\.0-\w+: ok; block keys are as predicted \(text, chat\)")
        text = httpx.get(f"{graph.url}/health").json()["details"]["demo"]
        assert f"block keys as predicted on {len(services)} of {len(services)} workers" in text
