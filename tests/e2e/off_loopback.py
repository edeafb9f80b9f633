"""Run inside a network namespace of its own: a graph at an address that is not loopback, and a worker
that joins it. Prints one JSON object with what was seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx

from tests.e2e.running import COMMAND, RunningGraph, run_graph

ADDRESS = "10.9.9.1"


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo"], check=True)
    with run_graph("--host", ADDRESS, secret="s3cret", wait=False) as graph:
        join = graph.wait_for(r"--join (tcp:\S+)")[1]
        url = graph.wait_ready()
        answers = {secret: joined(graph, join, secret) for secret in ("wrong", "s3cret")}
        with httpx.Client(base_url=url, timeout=30) as client:
            body = {"model": "demo", "prompt": "hello", "max_tokens": 3}
            texts = [client.post("/v1/completions", json=body).status_code for _ in range(6)]
    sys.stdout.write(json.dumps({"join": join, "url": url, "joined": answers, "statuses": texts}) + "\n")


def joined(graph: RunningGraph, address: str, secret: str) -> str:
    """What a second decode worker says that joins with this secret."""
    process = subprocess.Popen(
        [*COMMAND, "run", graph_target(), "--only", "Decode", "--join", address,
         "--set", "services.Prefill.engine=echo", "--set", "services.Decode.engine=echo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DYNAMO_SDK_SECRET": secret},
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("ready"):
            break
    process.terminate()
    process.wait(30)
    return said


def graph_target() -> str:
    from tests.e2e.running import GRAPHS

    return f"{GRAPHS}:graph"


if __name__ == "__main__":
    main()
