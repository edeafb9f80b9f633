"""The command against a server in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.main import get_command

from dynamo_sdk.bench.record import ErrorKind
from dynamo_sdk.cli import main
from dynamo_sdk.cli.main import build_app
from tests.docs.pages import code_words, page, section, table_rows

TRACE = '{"timestamp": 0, "input_length": 20, "output_length": 3, "hash_ids": [1]}\n'


class Handler(BaseHTTPRequestHandler):
    """Streams three tokens in two chunks. ``interrupt`` is called when a request has arrived."""

    protocol_version = "HTTP/1.1"
    models = ("only",)
    status = 200
    interrupt: Callable[[], None] | None = None
    bodies: list[dict[str, object]]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": name} for name in self.models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if self.interrupt is not None:
            self.interrupt()
            return  # no answer: the connection stays open
        key = "delta" if "messages" in body else "text"
        text = {"content": "a"} if key == "delta" else "a"
        chunks = [{"choices": [{key: text}]}, {"choices": [{key: text, "finish_reason": "length"}]}]
        usage = {"usage": {"prompt_tokens": 21, "completion_tokens": 3}}
        lines = [f"data: {json.dumps(one)}\n\n" for one in (*chunks, usage)]
        self._answer(self.status, "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(**settings: object) -> Iterator[tuple[str, list[dict[str, object]]]]:
    bodies: list[dict[str, object]] = []
    handler = type("Configured", (Handler,), {"bodies": bodies, **settings})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()
            thread.join()


def bench(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    return caught.value.code


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_figures_go_to_the_terminal_and_to_files(
    endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, lines, drawing = tmp_path / "r.json", tmp_path / "r.jsonl", tmp_path / "r.svg"
    with serving() as (url, bodies):
        code = bench(
            *(
                "--url",
                url,
                "-c",
                "2",
                "-n",
                "5",
                "--endpoint",
                endpoint,
                "--output-tokens",
                "3",
                "--seed",
                "4",
            ),
            *("--extra", '{"ignore_eos": true}', "--ttft-ms", "60000"),
            *("--json", str(figures), "--records", str(lines), "--plot", str(drawing)),
        )
    assert code == 0
    assert "5 ok, 0 failed, 2 to warm up, not counted" in capsys.readouterr().out
    report = json.loads(figures.read_text())
    assert report["output_tokens"]["mean"] == 3
    assert report["goodput"]["share"] == 1
    assert report["settings"]["model"] == "only"
    assert report["settings"]["seed"] == 4
    assert [json.loads(line)["is_warmup"] for line in lines.read_text().splitlines()].count(False) == 5
    ET.parse(drawing)
    assert len({json.dumps(body) for body in bodies}) == 7, "no two prompts are equal"
    assert all(body["ignore_eos"] is True and body["model"] == "only" for body in bodies)


def test_a_trace_and_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(TRACE * 3)
    with serving() as (url, bodies):
        assert bench("--url", url, "--trace", str(trace), "--speed", "2") == 0
        assert bench("--url", url, "--rate", "500", "--arrivals", "even", "-n", "4") == 0
    assert "late at p99" in capsys.readouterr().out
    prompts = {json.dumps(body["messages"]) for body in bodies[:3]}
    assert len(prompts) == 1, "one hash id covers them"
    assert len(bodies) == 7


def test_a_server_that_answers_nothing_well_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(status=503) as (url, _):
        assert bench("--url", url, "-n", "2") == 1
    assert "error http_503: 2 x" in capsys.readouterr().out


def test_an_interrupt_ends_early_with_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(handler: Handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with serving(interrupt=interrupt) as (url, _):
        assert bench("--url", url, "--warmup", "0") == 1
    assert "0 ok, 0 failed, 1 cut off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concurrency", "2", "--rate", "3"], "exclude each other"),
        (["--speed", "2"], "--speed plays the times of a --trace"),
        (["--extra", "[1]"], "is no JSON object"),
        (["--model", "other"], "there is no 'other' (models: only)"),
        (["--json", "no/such/folder/file"], "cannot write"),
        (["--trace", "none.jsonl"], "cannot read the trace"),
        (["--tokenizer", "none"], "no readable tokenizer.json"),
    ],
)
def test_wrong_input_is_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (url, bodies):
        assert bench("--url", url, *words) == 2
    assert said in capsys.readouterr().err
    assert bodies == []


def test_several_models_need_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(models=("a", "b")) as (url, _):
        assert bench("--url", url) == 2
        assert "name one with --model (models: a, b)" in capsys.readouterr().err
        assert bench("--url", url, "--model", "b", "-n", "1") == 0


def test_no_server_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (url, _):
        pass
    assert bench("--url", url) == 1
    assert "no server answers at" in capsys.readouterr().err


def test_the_page_describes_every_option() -> None:
    command = get_command(build_app(["bench"])).commands["bench"]  # type: ignore[attr-defined]
    real = {name for option in command.params for name in option.opts} - {"--help"}
    rows = table_rows(section(page("bench.md"), "Options"))
    assert {word for row in rows for word in code_words(row[0])} == real
    defaults = {option.opts[0]: option.default for option in command.params}
    shown = {code_words(row[0])[0]: row[1].strip("`") for row in rows}
    for name, value in defaults.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert shown[name] == f"{value:g}", name


def test_the_page_names_every_kind_of_error() -> None:
    assert {kind.value for kind in ErrorKind} - {"http"} <= {*code_words(page("bench.md"))}


def test_the_help_imports_nothing_of_the_load() -> None:
    code = (
        "import sys; from dynamo_sdk.cli.main import build_app; build_app(['bench']);"
        "print(sorted({'dynamo_sdk.bench', 'dynamo_sdk.errors', 'numpy', 'rich.live'} & {*sys.modules}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr
