"""What people read is kept as it is, in ``golden/``. ``UPDATE_GOLDEN=1 pytest tests/graph`` rewrites it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from dynamo_sdk import Graph
from dynamo_sdk.graph.compile import compile_plan
from dynamo_sdk.graph.deploy import parse_deploy
from dynamo_sdk.graph.render import print_plan, render_json, render_mermaid
from dynamo_sdk.types.plan import DeploymentPlan, GpuDevice, HostInventory, Inventory

from .plugins import paper_registry
from .services import Api, Everything, Lookup, Simple

GOLDEN = Path(__file__).parent / "golden"
GPUS = tuple(GpuDevice(id=str(index)) for index in range(4))
ONE_HOST = Inventory(hosts=(HostInventory(name="here", num_cpus=8, gpus=GPUS),))
TWO_HOSTS = Inventory(hosts=tuple(HostInventory(name=name, num_cpus=8, gpus=GPUS) for name in ("a", "b")))


def _plan(graph: Graph, text: str, *overrides: str, inventory: Inventory = ONE_HOST) -> DeploymentPlan:
    return compile_plan(
        graph,
        target="graph.py",
        registry=paper_registry(),
        inventory=inventory,
        deploy=parse_deploy(text, overrides=overrides),
    )


PLANS = {
    "disaggregated": _plan(
        Graph(Api, router="random"),
        """
        services:
          Prefill: {engine: paper, replicas: 2, gpus: 1}
          Decode: {engine: paper, gpus: 2, cpus: 4}
        """,
        "services.Decode.args.max_num_seqs=8",
    ),
    "aggregated": _plan(Graph(Simple), "services: {Worker: {engine: whole}, Lookup: {args: {size: 4}}}"),
    "two_models": _plan(
        Graph(Everything),
        """
        models: {big: {path: ./big}, small: {path: org/small, router: random}}
        planner: wise
        services:
          Prefill: {engine: paper, model: big, gpus: 4}
          Decode: {engine: papyrus, model: big, gpus: 2}
          Worker: {engine: paper, model: small, python: ./other/bin/python, replicas: 2, gpus: 1}
        """,
        inventory=TWO_HOSTS,
    ),
    "no_model": _plan(Graph(Lookup), ""),
}


def _table(plan: DeploymentPlan) -> str:
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=100, force_terminal=False, color_system=None))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _compare(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PLANS)
def test_tables(name: str) -> None:
    _compare(f"{name}.txt", _table(PLANS[name]))


@pytest.mark.parametrize("name", PLANS)
def test_mermaid(name: str) -> None:
    _compare(f"{name}.mmd", render_mermaid(PLANS[name]))


def test_json() -> None:
    text = render_json(PLANS["disaggregated"])
    _compare("disaggregated.json", text + "\n")
    assert msgspec.json.decode(text, type=DeploymentPlan) == PLANS["disaggregated"]


@pytest.mark.parametrize("name", PLANS)
def test_every_setting_is_shown_with_its_origin(name: str) -> None:
    rows = _table(PLANS[name]).splitlines()
    assert PLANS[name].settings
    for setting in PLANS[name].settings:
        assert any(row.startswith(setting.path + " ") and row.endswith(setting.origin) for row in rows)


def test_markup_in_names_is_text() -> None:
    plan = _plan(Graph(Lookup), "services: {Lookup: {args: {path: '[red]x[/red]'}}}")
    assert "[red]x[/red]" in _table(plan)


def test_a_narrow_terminal_loses_nothing() -> None:
    out = io.StringIO()
    print_plan(PLANS["two_models"], Console(file=out, width=40, force_terminal=False, color_system=None))
    assert "…" not in out.getvalue()


def test_mermaid_labels_are_escaped() -> None:
    plan = _plan(Graph(Api), "services: {Prefill: {engine: paper}, Decode: {engine: paper}}")
    odd = msgspec.structs.replace(
        plan, services=tuple(msgspec.structs.replace(part, connector='a"|<b>') for part in plan.services)
    )
    assert '"KV blocks, a#quot;#124;#lt;b#gt;"' in render_mermaid(odd)
