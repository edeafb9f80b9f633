"""``dynamo-sdk kv``: the tiers of a graph that runs, and of one that has none."""

from __future__ import annotations

import io
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from rich.console import Console

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.cli.kv import fetch, kv, read_tiers, render
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.services import Frontend, Worker

pytestmark = pytest.mark.anyio


@service
class Model(Worker): ...


@service
class Api(Frontend):
    model = depends(Model)


def shown(text: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(read_tiers(text)))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


async def test_a_graph_with_tiers_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model on a device of a hundred blocks; what it computes goes to RAM at once."""
    deploy = {
        "kv": {
            "tiers": [
                {"kind": "ram", "capacity": "64MiB"},
                {"kind": "disk", "capacity": "128MiB", "path": str(tmp_path), "min_uses": 1},
            ]
        },
        "services": {"Model": {"args": {"num_blocks": 100, "device": "cpu"}}},
    }
    async with Graph(Api).local(deploy) as app:
        url = app.url or ""
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for _ in range(2):
                body = {"model": "demo", "prompt": [65] * 200, "max_tokens": 1}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
        text = await anyio.to_thread.run_sync(fetch, f"{url}/v1")
        await anyio.to_thread.run_sync(kv, url)
    state = read_tiers(text)
    assert {(service, tier) for service, _, tier in state.tiers} == {("Model", "ram"), ("Model", "disk")}
    assert (tmp_path / "Model-0" / "table").exists()
    printed = capsys.readouterr().out
    assert "ram" in printed
    assert "of 64.0 MiB" in printed


def test_figures_are_said_in_units() -> None:
    labels = 'service="Decode",worker_id="w1",role="decode",tier="ram"'
    text = "\n".join(
        [
            f"kvbm_blocks{{{labels}}} 1200",
            f"kvbm_used_bytes{{{labels}}} 78643200",
            f"kvbm_lookup_blocks_total{{{labels}}} 200",
            f"kvbm_hit_blocks_total{{{labels}}} 50",
            f"kvbm_onboarded_blocks_total{{{labels}}} 40",
            f"kvbm_onboarded_bytes_total{{{labels}}} 2621440",
            f"kvbm_onboard_seconds_total{{{labels}}} 0.5",
            'kvbm_onboard_decisions_total{service="Decode",worker_id="w1",decision="load"} 3',
            'kvbm_onboard_decisions_total{service="Decode",worker_id="w2",decision="load"} 4',
            "",
        ]
    )
    table = shown(text)
    for words in ("Decode w1", "1,200", "75.0 MiB", "50 of 200 25%", "40 (2.5 MiB, 5.0 MiB/s)", "7 load"):
        assert words in table


def test_a_graph_without_tiers_says_so() -> None:
    assert "no worker of this graph has cache tiers" in shown("")


@pytest.mark.parametrize(
    ("url", "words"), [("localhost", "does not begin"), ("http://127.0.0.1:9", "is the graph running?")]
)
def test_what_cannot_be_asked(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match="--url" if "begin" in words else "cannot ask") as caught:
        fetch(url)
    assert words in caught.value.message


def test_what_are_no_metrics() -> None:
    with pytest.raises(ConfigError, match="no Prometheus metrics"):
        read_tiers("<html>hello</html>\n")
