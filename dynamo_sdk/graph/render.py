"""A plan for people (tables), for programs (JSON) and for documents (Mermaid)."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynamo_sdk.types import Role
from dynamo_sdk.types.plan import DeploymentPlan, EdgePlan, Json, Origin, ServicePlan, Setting

_ORIGIN_STYLES = {
    Origin.DEFAULT: "dim",
    Origin.PLUGIN: "dim",
    Origin.GRAPH: "blue",
    Origin.DEPLOY: "green",
    Origin.COMMAND: "yellow",
}


def render_json(plan: DeploymentPlan) -> str:
    """The whole plan, indented; read back with ``msgspec.json.decode(text, type=DeploymentPlan)``."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode()


def print_plan(plan: DeploymentPlan, console: Console) -> None:
    """Services, models and settings as tables. Defaults are dim, what somebody wrote is not."""
    num_processes = sum(len(service.replicas) for service in plan.services)
    num_gpus = sum(len(replica.gpu_ids) for service in plan.services for replica in service.replicas)
    hosts = {replica.host for service in plan.services for replica in service.replicas}
    console.print(
        Text.assemble(
            (plan.target, "bold"),
            f": {_count(len(plan.services), 'service')}, "
            f"{_count(num_processes, 'process', 'processes')}, {_count(num_gpus, 'GPU')}",
        ),
        end="\n\n",
        soft_wrap=True,
    )
    _print_rows(
        console,
        ("service", "role", "engine", "model", "replicas", "GPUs", "calls"),
        [
            (
                Text(service.name, "bold"),
                _part(service),
                service.engine.name if service.engine else "",
                service.model or "",
                str(len(service.replicas)),
                _gpus(service, with_host=len(hosts) > 1),
                ", ".join(_call(edge) for edge in service.edges),
            )
            for service in plan.services
        ],
    )
    _print_rows(
        console,
        ("model", "path", "router", "hand-over"),
        [
            (Text(model.spec.name, "bold"), model.spec.path, model.router.name, model.connector or "none")
            for model in plan.models
        ],
    )
    _print_rows(
        console,
        ("setting", "value", "origin"),
        [
            (_setting_path(setting), _value(setting.value), Text(setting.origin, _style(setting)))
            for setting in plan.settings
        ],
    )


def render_mermaid(plan: DeploymentPlan) -> str:
    """A flowchart: solid arrows are calls, dotted ones are KV blocks."""
    ids = {service.name: f"s{index}" for index, service in enumerate(plan.services)}
    lines = ["flowchart LR"]
    for service in plan.services:
        about = " · ".join(
            part
            for part in (
                _part(service),
                service.engine.name if service.engine else "",
                f"{len(service.replicas)}x",
                f"{_count(service.gpus_per_replica, 'GPU')} each" if service.gpus_per_replica else "",
            )
            if part
        )
        lines.append(f'    {ids[service.name]}["{_label(service.name)}<br/>{_label(about)}"]')
    if any(service.is_frontend for service in plan.services):
        lines.append('    client(["client"])')
    for service in plan.services:
        if service.is_frontend:
            lines.append(f"    client -->|HTTP| {ids[service.name]}")
        lines += [
            f"    {ids[service.name]} -->|{_label(edge.attribute)}| {ids[edge.service]}"
            for edge in service.edges
        ]
    for prefill in plan.services:
        for decode in plan.services:
            is_pair = (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE)
            if is_pair and prefill.model == decode.model and prefill.connector:
                blocks = _label(f"KV blocks, {prefill.connector}")
                lines.append(f'    {ids[prefill.name]} -.->|"{blocks}"| {ids[decode.name]}')
    return "\n".join(lines) + "\n"


def _print_rows(console: Console, headers: tuple[str, ...], rows: list[tuple[str | Text, ...]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)
    console.print()


def _part(service: ServicePlan) -> str:
    if service.is_frontend:
        return "frontend"
    return str(service.role) if service.role else "service"


def _gpus(service: ServicePlan, *, with_host: bool) -> str:
    """Each replica's own, replicas apart: ``0,1 | 2,3``."""
    if not service.gpus_per_replica:
        return "none"
    return " | ".join(
        (f"{replica.host}:" if with_host else "") + ",".join(replica.gpu_ids) for replica in service.replicas
    )


def _call(edge: EdgePlan) -> str:
    is_plain = edge.attribute.replace("_", "").lower() == edge.service.lower()
    return edge.service if is_plain else f"{edge.attribute} → {edge.service}"


def _setting_path(setting: Setting) -> Text:
    above, dot, key = setting.path.rpartition(".")
    return Text.assemble((above + dot, "dim"), key)


def _value(value: Json) -> str:
    return value if isinstance(value, str) and value else msgspec.json.encode(value).decode()


def _style(setting: Setting) -> str:
    return _ORIGIN_STYLES[setting.origin]


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _label(text: str) -> str:
    return text.replace('"', "#quot;").replace("|", "#124;").replace("<", "#lt;").replace(">", "#gt;")
