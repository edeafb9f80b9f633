"""``dynamo-sdk explain``: why a request goes where it goes, asked of a frontend or of its decision log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynamo_sdk.interfaces import Router
    from dynamo_sdk.routing.decision_log import Entry
    from dynamo_sdk.routing.explanation import Explanation

_TIMEOUT_S = 120.0


def explain(
    request: Annotated[
        str | None,
        typer.Argument(help="A file with a request's JSON body, or a prompt; with --log a request's id."),
    ] = None,
    url: Annotated[
        str, typer.Option(help="The frontend that is asked, by sending the request for two tokens.")
    ] = "http://127.0.0.1:8000",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A decision log, instead of a frontend.")
    ] = None,
    router: Annotated[
        str,
        typer.Option(
            help="With --log: who decides again, by name, as {name: ..., args: ...} or module:Class."
        ),
    ] = "kv",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show what each worker would have cost a request, what left it out, and who was next.

    With --log and no request: how many decisions the router would have made in the same way.
    """
    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
    if log is not None:
        _from_log(log, request, router)
        return
    if request is None:
        from dynamo_sdk.errors import ConfigError

        raise ConfigError("name a request: a JSON file or a prompt; or give --log")
    for explanation in ask(url, request):
        typer.echo(table(explanation))


def ask(url: str, request: str) -> list[Explanation]:
    """Send it, and read why it went where it went. Raises ``ConfigError`` for what cannot be asked."""
    import json
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    import msgspec

    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.routing.explanation import Explanation

    root = url.rstrip("/").removesuffix("/v1")
    if not root.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {url!r} does not begin with http:// or https://")
    try:
        body = _body(request, root)
        path = "chat/completions" if "messages" in body else "completions"
        headers = {"content-type": "application/json"}
        sent = Request(f"{root}/v1/{path}", json.dumps(body).encode(), headers)
        with urlopen(sent, timeout=_TIMEOUT_S) as answer:
            shown = json.load(answer)
    except HTTPError as error:
        why = error.read(2000).decode(errors="replace")
        raise ConfigError(f"{root} refused the request: {why}") from error
    except (URLError, TimeoutError) as error:
        raise ConfigError(f"cannot ask {root}: {error}; is the graph running?") from error
    try:
        return msgspec.convert(shown["dynamo"]["explain"], list[Explanation])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{root} does not explain: is it a frontend of this version?") from error


def _body(request: str, root: str) -> dict[str, Any]:
    import json
    from urllib.request import urlopen

    from dynamo_sdk.errors import ConfigError

    path = Path(request)
    if path.suffix == ".json":
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read a request from {path}: {error}") from error
        if not isinstance(body, dict):
            raise ConfigError(f"{path} does not hold a JSON object")
    else:
        body = {"prompt": request}
    if "model" not in body:
        with urlopen(f"{root}/v1/models", timeout=_TIMEOUT_S) as answer:
            body["model"] = json.load(answer)["data"][0]["id"]
    # One token, or an early end, and a request never leaves its prefill worker.
    length = {
        "max_tokens": 2,
        "max_completion_tokens": None,
        "min_tokens": None,
        "stop": None,
        "ignore_eos": True,
    }
    extensions = {**(body.get("dynamo") or {}), "explain": True}
    return {**body, **length, "dynamo": extensions, "stream": False}


def table(explanation: Explanation) -> str:
    """One decision, as lines of text: the candidates, cheapest first."""
    shown = explanation
    lines = [
        f"{shown.pool}: {shown.worker}" + (f" rank {shown.dp_rank}" if shown.dp_rank else ""),
        f"  {shown.reason}; {shown.num_tokens} tokens, {shown.num_blocks} full blocks"
        + (f"; next would be {shown.runner_up}" if shown.runner_up else ""),
    ]
    names = [name for one in shown.candidates for name in one.terms]
    names = list(dict.fromkeys(names))
    rows = [["worker", "cost", *names, "cached blocks", "requests", "report age s"]]
    for one in shown.candidates:
        rank = f"/{one.dp_rank}" if one.dp_rank else ""
        cost = one.filtered_by or ("" if one.cost is None else f"{one.cost:.4g}")
        age = "none" if one.load_age_s is None else f"{one.load_age_s:.2f}"
        terms = [f"{one.terms[name]:.4g}" if name in one.terms else "" for name in names]
        counts = [str(one.num_cached_blocks), str(one.num_active_requests)]
        rows.append([f"{one.worker}{rank}", cost, *terms, *counts, age])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    if shown.excluded:
        lines.append(f"  had failed it before: {', '.join(shown.excluded)}")
    return "\n".join(lines)


def router_maker(text: str) -> tuple[str, Callable[[], Router]]:
    """A router as a deploy file says it, or by import string: its name, and what makes one. Raises
    ``ConfigError`` or ``PluginError``."""
    import yaml

    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.plugins import Registry
    from dynamo_sdk.routing.naming import router_named

    try:
        said = yaml.safe_load(text) if text.startswith("{") else text
    except yaml.YAMLError as error:
        raise ConfigError(f"--router: {text!r}: {error}") from error
    if not isinstance(said, dict):
        if ":" in text:
            return text, lambda: router_named(text)
        said = {"name": text}
    name, args = said.get("name"), said.get("args") or {}
    if not isinstance(name, str) or not isinstance(args, dict) or said.keys() - {"name", "args"}:
        raise ConfigError(f"--router: {text!r} is not {{name: NAME, args: {{...}}}}")
    registry = Registry.discover()
    return name, lambda: registry.build_router(name, args)


def _from_log(path: Path, request_id: str | None, router: str) -> None:
    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.interfaces import RoutingRequest
    from dynamo_sdk.routing.decision_log import Decided, read_log, replay
    from dynamo_sdk.routing.explanation import explain as explained

    router, make_router = router_maker(router)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    entries = list(read_log(data))
    if request_id is not None:  # an answer's id says which route it came from, a decision's does not
        request_id = request_id.removeprefix("chatcmpl-").removeprefix("cmpl-")
    num, num_same, is_found = 0, 0, False
    for pool in dict.fromkeys((entry.model, entry.role) for entry in entries if isinstance(entry, Decided)):
        for one in replay(_of_pool(entries, pool), make_router(), is_explaining=True):
            num, num_same = num + 1, num_same + one.is_same
            entry = one.entry
            if request_id is None or not entry.request_id.startswith(request_id):
                continue
            is_found = True
            verdict = "decides the same" if one.is_same else "decides otherwise"
            typer.echo(f"{entry.request_id} went to {entry.worker_id}; {router} {verdict}")
            if one.decision is None:
                typer.echo(f"  {router} failed: {one.error}")
                continue
            asked = RoutingRequest(
                request_id=entry.request_id,
                model=entry.model,
                role=entry.role,
                num_tokens=entry.num_tokens,
                block_keys=memoryview(entry.block_keys).cast("Q") if entry.block_keys else (),
            )
            typer.echo(table(explained(asked, entry.candidates, one.decision, (), entry.now_s)))
    if request_id is not None and not is_found:
        raise ConfigError(f"{path} has no decision of a request {request_id!r} (it has {num} decisions)")
    typer.echo(f"{num_same} of {num} decisions are the same under {router}")


def _of_pool(entries: list[Entry], pool: tuple[str, str]) -> list[Entry]:
    """Its decisions, and the facts about its workers: each pool has a router of its own."""
    from dynamo_sdk.routing.decision_log import Decided

    kept: list[Entry] = []
    workers: set[str] = set()
    for entry in entries:
        if isinstance(entry, Decided):
            if (entry.model, entry.role) == pool:
                workers.update(candidate.worker_id for candidate in entry.candidates)
                kept.append(entry)
        else:
            fact = entry.routed or entry.prefill_done or entry.freed
            if fact is not None and fact.worker_id in workers:
                kept.append(entry)
    return kept
