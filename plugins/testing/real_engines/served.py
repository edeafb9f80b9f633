"""``dynamo-sdk run`` from an environment that has only the plugins, and the official client.

Environment: ``LIGHT_PYTHON``, the interpreter of that environment; without it, the one of these tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil

GRAPHS = Path(__file__).parent / "graphs.py"
LIGHT_PYTHON = os.environ.get("LIGHT_PYTHON", sys.executable)
PROMPT = [7 * token % 1000 + 10 for token in range(200)]
NUM_CACHED = 192
"""Of its tokens: those in full blocks of 16 or 32."""
STOP_TIMEOUT_S = 60.0


@contextmanager
def running(
    tmp_path: Path, graph: str, deploy: Mapping[str, object]
) -> Iterator[tuple[openai.OpenAI, list[psutil.Process]]]:
    """From ready to a polite stop, which must leave no process behind; the processes are those at first."""
    written = tmp_path / "deploy.yaml"
    written.write_text(json.dumps(deploy))
    main = "from dynamo_sdk.cli import main; main()"
    process = subprocess.Popen(
        [LIGHT_PYTHON, "-c", main, "run", graph, "-f", str(written), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), f"{line!r}, exit code {process.poll()}"
        tree = psutil.Process(process.pid).children(recursive=True)
        yield openai.OpenAI(base_url=f"{line.split()[1]}/v1", api_key="none"), tree
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0
        _, alive = psutil.wait_procs(tree, timeout=5)
        assert not alive
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def complete(
    client: openai.OpenAI, prompt: list[int] = PROMPT, *, model: str = "demo", **sampling: object
) -> openai.types.Completion:
    body = {"ignore_eos": True, "return_token_ids": True}
    options = {"max_tokens": 24, "temperature": 0, **sampling}
    return client.completions.create(model=model, prompt=prompt, extra_body=body, **options)  # type: ignore[call-overload]


def token_ids(answer: openai.types.Completion) -> list[int]:
    extra = answer.choices[0].model_extra
    assert extra is not None
    return extra["token_ids"]


def answers_of_aggregated(client: openai.OpenAI) -> dict[str, list[int]]:
    """Of two workers behind the KV router: asked again, the prompt goes where it was. On a busy machine the
    other worker may be expected to be sooner; then that one has it, too."""
    first = complete(client)
    cached = set()
    for _ in range(6):
        again = complete(client)
        assert again.usage is not None
        assert again.usage.prompt_tokens_details is not None
        cached.add(again.usage.prompt_tokens_details.cached_tokens)
        assert token_ids(again) == token_ids(first)
    assert NUM_CACHED in cached, "it went where its KV is"
    assert cached <= {0, None, NUM_CACHED}
    return {"greedy": token_ids(first), "sampled": token_ids(complete(client, temperature=1, seed=3))}


def check_answers(client: openai.OpenAI, expected: Mapping[str, list[int]]) -> None:
    """They are as expected, and a conversation is streamed."""
    for _ in range(3):
        assert token_ids(complete(client)) == expected["greedy"]
    assert token_ids(complete(client, temperature=1, seed=3)) == expected["sampled"]
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is a KV block?"}],
        max_tokens=32,
        temperature=0,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chat if chunk.choices)
    assert len(text.split()) > 3
