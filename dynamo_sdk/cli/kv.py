"""``dynamo-sdk kv``: what the cache tiers of a running graph hold and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

_TIMEOUT_S = 10.0
_SERIES = {
    "kvbm_blocks": "num_blocks",
    "kvbm_used_bytes": "used_bytes",
    "kvbm_capacity_bytes": "capacity_bytes",
    "kvbm_lookup_blocks_total": "num_lookups",
    "kvbm_hit_blocks_total": "num_hits",
    "kvbm_onboarded_blocks_total": "num_onboarded",
    "kvbm_onboarded_bytes_total": "onboarded_bytes",
    "kvbm_onboard_seconds_total": "onboard_s",
    "kvbm_offloaded_blocks_total": "num_offloaded",
    "kvbm_offloaded_bytes_total": "offloaded_bytes",
    "kvbm_offload_seconds_total": "offload_s",
    "kvbm_queued_blocks": "num_queued",
    "kvbm_evicted_blocks_total": "num_evicted",
    "kvbm_failed_blocks_total": "num_failed",
}
_DECISIONS = "kvbm_onboard_decisions_total"
_COLUMNS = ("worker", "tier", "blocks", "held", "hits", "loaded", "written", "queued", "evicted", "failed")


def kv(
    url: Annotated[str, typer.Option(help="A frontend of the graph.")] = "http://127.0.0.1:8000",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, also on a terminal.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show the cache tiers of all workers: what they hold, what was found, what goes up and down.

    On a terminal the table is kept up to date until Ctrl-C; elsewhere it is printed once.
    """
    import time

    from rich.live import Live

    from .console import table_console

    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
    console = table_console()
    state = read_tiers(fetch(url))
    if once or not console.is_terminal:
        console.print(render(state))
        return
    with Live(render(state), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            state = read_tiers(fetch(url))
            live.update(render(state), refresh=True)


@dataclass(frozen=True, slots=True)
class TierState:
    """``tiers``: by (service, worker, tier), each with values as in ``_SERIES``. ``decisions``: how often
    each was taken, over all workers."""

    tiers: Mapping[tuple[str, str, str], Mapping[str, float]]
    decisions: Mapping[str, float]


def fetch(url: str) -> str:
    """The metrics of the whole graph. Raises ``ConfigError``."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from dynamo_sdk.errors import ConfigError

    root = url.rstrip("/").removesuffix("/v1")
    if not root.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {url!r} does not begin with http:// or https://")
    try:
        with urlopen(f"{root}/metrics", timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except (HTTPError, URLError, TimeoutError, OSError) as error:
        raise ConfigError(f"cannot ask {root} for its metrics: {error}; is the graph running?") from error


def read_tiers(text: str) -> TierState:
    """From Prometheus text. Raises ``ConfigError`` when it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    from dynamo_sdk.errors import ConfigError

    tiers: dict[tuple[str, str, str], dict[str, float]] = {}
    decisions: dict[str, float] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise ConfigError(f"these are no Prometheus metrics: {error}") from error
    for sample in samples:
        labels = sample.labels
        if sample.name == _DECISIONS:
            decision = labels["decision"]
            decisions[decision] = decisions.get(decision, 0.0) + sample.value
        elif sample.name in _SERIES:
            place = (labels["service"], labels["worker_id"], labels["tier"])
            tiers.setdefault(place, {})[_SERIES[sample.name]] = sample.value
    return TierState(tiers, decisions)


def render(state: TierState) -> Table | str:
    from rich.table import Table
    from rich.text import Text

    if not state.tiers:
        return "no worker of this graph has cache tiers; kv.tiers of the deploy file gives it some"
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        is_text = column in ("worker", "tier")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for (service, worker_id, tier), values in state.tiers.items():
        table.add_row(*map(Text, (f"{service} {worker_id}", tier, *_cells(values))))
    if state.decisions:
        counts = [f"{state.decisions[name]:,.0f} {name}" for name in sorted(state.decisions)]
        table.caption = Text(f"requests of which a tier had more: {', '.join(counts)}")
        table.caption_justify = "left"
    return table


def _cells(values: Mapping[str, float]) -> Sequence[str]:
    def of(name: str) -> float:
        return values.get(name, 0.0)

    capacity = f" of {_size(of('capacity_bytes'))}" if "capacity_bytes" in values else ""
    share = f" {of('num_hits') / of('num_lookups'):.0%}" if of("num_lookups") else ""
    return (
        f"{of('num_blocks'):,.0f}",
        f"{_size(of('used_bytes'))}{capacity}",
        f"{of('num_hits'):,.0f} of {of('num_lookups'):,.0f}{share}",
        _moved(of("num_onboarded"), of("onboarded_bytes"), of("onboard_s")),
        _moved(of("num_offloaded"), of("offloaded_bytes"), of("offload_s")),
        f"{of('num_queued'):,.0f}",
        f"{of('num_evicted'):,.0f}",
        f"{of('num_failed'):,.0f}",
    )


def _moved(num_blocks: float, num_bytes: float, seconds: float) -> str:
    """``seconds`` were spent on it, by all who did so at a time."""
    rate = f", {_size(num_bytes / seconds)}/s" if num_bytes and seconds else ""
    return f"{num_blocks:,.0f} ({_size(num_bytes)}{rate})" if num_blocks else "0"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
