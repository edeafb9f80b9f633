"""Every example does what the comment at its top says, as the commands that stand there."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest

from tests.e2e.serving import REPOSITORY, serve

EXAMPLES = REPOSITORY / "examples"
MAX_LINES = 80


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(name: str) -> list[list[str]]:
    """The commands of an example's first comment, as words."""
    text = (EXAMPLES / name).read_text().split('"""')[1]
    found = re.findall(r"^    ((?:dynamo-sdk|python|pytest) [^\n(]+)", text, flags=re.MULTILINE)
    return [line.split() for line in found]


def words_of_run(name: str) -> tuple[str, ...]:
    """What stands after ``dynamo-sdk run`` in an example's comment."""
    return next(tuple(words[2:]) for words in commands(name) if words[:2] == ["dynamo-sdk", "run"])


def chat(url: str, model: str, text: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    answer = response.json()["choices"][0]["message"]["content"]
    assert isinstance(answer, str)
    return answer


def examples() -> list[str]:
    return sorted(file.name for file in EXAMPLES.glob("[0-9]*.py"))


def test_each_example_is_tested_here() -> None:
    tests = {name.split("_")[1] for name in globals() if re.match(r"test_\d\d_", name)}
    assert tests == {name[:2] for name in examples()}


@pytest.mark.parametrize("name", examples())
def test_each_example_is_short_and_says_how_to_run_it(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < MAX_LINES
    assert commands(name)
    for words in commands(name):
        assert f"examples/{name}" in words


def test_01_hello() -> None:
    with serve(*words_of_run("01_hello.py")) as served:
        assert "Hello!" in chat(served.url, "demo", "Hello!")


def test_02_disaggregated() -> None:
    answers = run("examples/02_disaggregated.py").strip().split("> ")[1:]
    assert len(answers) == 3
    assert "block" in answers[0].splitlines()[1]
    assert all(len(answer.splitlines()[1]) > 20 for answer in answers)


def test_03_own_services() -> None:
    assert run("examples/03_own_services.py").splitlines() == [
        "Decode: Decode writes the answer, token by token.",
        "Blocks: The KV cache is kept in blocks, from prefill to decode.",
    ]
    with serve(*words_of_run("03_own_services.py")) as served:
        assert served.url == ""
        assert served.graph.replica("Library") != served.graph.replica("Writer")


def test_04_your_own_router() -> None:
    lines = sorted(run("examples/04_your_own_router.py").splitlines())
    *short, long = [float(line.rpartition(" ")[2]) for line in lines]
    assert sum(short) == 5 + 7 + 2  # and the two tokens with which a graph tries itself out
    assert long == 500 + 700 + 900
    with serve(*words_of_run("04_your_own_router.py")) as served:
        assert "block" in chat(served.url, "demo", "What is a KV block?")


def test_05_two_models() -> None:
    with serve(*words_of_run("05_two_models.py")) as served:
        models = httpx.get(f"{served.url}/v1/models").json()["data"]
        assert sorted(model["id"] for model in models) == ["demo", "parrot"]
        question = "What is a KV block?"
        assert question in chat(served.url, "parrot", question)
        answer = chat(served.url, "demo", question)
        assert "block" in answer
        assert question not in answer


def test_06_testing_a_service() -> None:
    assert "3 passed" in run("-m", "pytest", "-q", "examples/06_testing_a_service.py")
