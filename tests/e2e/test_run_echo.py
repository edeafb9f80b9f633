"""A disaggregated graph with the echo engine, from the command line to the last process."""

from __future__ import annotations

import json
import os
import signal

import httpx
import pytest

from tests.launch.deaths import assert_die

from .running import RunningGraph, run_graph, stop

NUM_PROCESSES = 6  # three replicas, a guardian each


def ask(url: str, text: str = "hello", **more: object) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 64, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def answer_of(url: str, text: str = "hello") -> str:
    response = ask(url, text)
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def assert_turns_ready_again(graph: RunningGraph, service: str) -> None:
    graph.wait_for(rf"{service}\.0 +\| \[ready after")
    assert "hello" in answer_of(graph.url)
    assert httpx.get(f"{graph.url}/health").status_code == 200


@pytest.fixture(scope="module")
def echo() -> RunningGraph:
    """One graph for the tests that only look at it."""
    with run_graph() as graph:
        yield graph


def test_a_chat_is_answered(echo: RunningGraph) -> None:
    assert "What is a KV block?" in answer_of(echo.url, "What is a KV block?")
    assert [model["id"] for model in httpx.get(f"{echo.url}/v1/models").json()["data"]] == ["demo"]
    assert httpx.get(f"{echo.url}/health").status_code == 200


def test_a_stream_says_the_same_and_ends(echo: RunningGraph) -> None:
    whole = answer_of(echo.url, "one two three")
    lines = [line for line in ask(echo.url, "one two three", stream=True).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == whole


def test_the_processes_are_what_the_plan_says(echo: RunningGraph) -> None:
    assert len(echo.tree()) == NUM_PROCESSES
    assert len({echo.replica(service) for service in ("Prefill", "Decode", "Api")}) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_is_clean(number: signal.Signals) -> None:
    with run_graph() as graph:
        pids = graph.tree()
        assert "hello" in answer_of(graph.url)
        assert stop(graph, number) == 0, graph.log
        assert graph.process.stdout is not None
        assert graph.process.stdout.read() == ""
        assert_die(pids, deadline_s=0.1)
        with pytest.raises(httpx.ConnectError):
            httpx.get(graph.url)


def test_a_request_under_way_is_finished_before_the_graph_ends() -> None:
    slow = ("--set", "services.Decode.args.delay_ms=20", "--set", "services.Prefill.args.delay_ms=20")
    with run_graph(*slow) as graph:
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "a b c d e f g h"}],
            "max_tokens": 40,
            "stream": True,
        }
        with httpx.stream("POST", f"{graph.url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines).startswith("data: {")
            graph.process.send_signal(signal.SIGTERM)
            graph.wait_for("stopping")
            assert list(lines)[-1] == "data: [DONE]"
        assert graph.wait_ended() == 0


def test_killing_the_command_leaves_no_process() -> None:
    with run_graph() as graph:
        pids = graph.tree()
        assert len(pids) == NUM_PROCESSES
        graph.process.kill()
        assert_die(pids)


@pytest.mark.parametrize("service", ["Prefill", "Decode", "Api"])
def test_a_killed_replica_is_restarted_and_the_graph_turns_ready_again(service: str) -> None:
    with run_graph() as graph:
        pid = graph.replica(service)
        graph.wait_for(r"Api\.0 +\| \[ready after")
        os.kill(pid, signal.SIGKILL)
        graph.wait_for(rf"{service}\.0 +\| \[was killed by SIGKILL; starting again")
        assert_turns_ready_again(graph, service)
        assert graph.replica(service) != pid
        assert stop(graph) == 0


def test_a_worker_joins_and_leaves() -> None:
    """The graph has no worker of its own: it is ready when, and as long as, a guest is there."""
    with run_graph("--set", "services.Whole.replicas=0", name="aggregated", wait=False) as graph:
        address = graph.wait_for(r"--join (\S+)")[1]
        with run_graph("--only", "Whole", "--join", address, name="aggregated") as joined:
            assert joined.url == ""
            graph.wait_ready()
            assert "hello" in answer_of(graph.url)
            assert stop(joined) == 0
        assert httpx.get(f"{graph.url}/health").status_code == 503
        assert stop(graph) == 0


def test_a_second_frontend_joins() -> None:
    with run_graph(name="aggregated") as graph:
        address = graph.wait_for(r"--join (\S+)")[1]
        with run_graph("--only", "WholeApi", "--join", address, name="aggregated") as joined:
            assert joined.url not in ("", graph.url)
            assert "hello" in answer_of(joined.url)
            assert stop(joined) == 0
        assert "hello" in answer_of(graph.url)


def test_a_secret_keeps_strangers_out() -> None:
    with run_graph(name="aggregated", secret="sesame") as graph:
        address = graph.wait_for(r"--join (\S+)")[1]
        words = ("--only", "Whole", "--join", address)
        with run_graph(*words, name="aggregated", secret="wrong", wait=False) as stranger:
            assert stranger.wait_ended() == 1
            assert any("secret" in line for line in stranger.log)
        with run_graph(*words, name="aggregated", secret="sesame") as friend:
            assert stop(friend) == 0
        assert stop(graph) == 0


def test_an_engine_that_cannot_start_fails_the_graph() -> None:
    with run_graph("--set", "model.path=/no/such/model", wait=False) as graph:
        assert graph.wait_ended() in (1, 2)
        text = "\n".join(graph.log)
        assert "/no/such/model" in text
        assert "Traceback" not in text


def test_inprocess_answers_the_same() -> None:
    with run_graph("--launcher", "inprocess") as graph:
        assert graph.tree() == []
        assert "hello" in answer_of(graph.url)
        assert stop(graph) == 0
