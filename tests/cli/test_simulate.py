"""The command: what it reads, what it writes, and that its page names all of its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.main import get_command

from dynamo_sdk.cli import main
from dynamo_sdk.cli.main import build_app
from tests.docs.pages import code_words, page, section, table_rows

TARGET = "tests.simulate.services:graph"
MOCKED = ("--set", "services.Model.engine=mocker", "--set", "services.Model.replicas=2")
ROWS = "".join(
    f'{{"timestamp": {40 * n}, "input_length": 600, "output_length": 9, "hash_ids": [{n % 2}, {n}]}}\n'
    for n in range(20)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(ROWS)
    return file


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_policies_side_by_side(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files: list[list[bytes]] = []
    for number in range(2):
        paths = [tmp_path / f"{number}.{kind}" for kind in ("json", "html", "records")]
        code = run(
            TARGET, *MOCKED, "--trace", trace, "--compare", "round-robin, random", "--seed", 3,
            "--ttft-ms", 100, "--json", paths[0], "--html", paths[1], "--records", paths[2],
        )  # fmt: skip
        assert code == 0
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1], "the same seed gives the same bytes"
    report = json.loads(files[0][0])
    assert [policy["router"] for policy in report["policies"]] == ["round-robin", "random"]
    assert [policy["num_ok"] for policy in report["policies"]] == [20, 20]
    assert len(files[0][2].splitlines()) == 40
    printed = capsys.readouterr().out
    assert "goodput" in printed
    assert "random" in printed


def test_a_made_workload_can_be_kept(tmp_path: Path) -> None:
    kept, again = tmp_path / "kept.jsonl", tmp_path / "again.jsonl"
    made = ("--workload", "chats,sessions=3")
    limits = ("--mocker", "context_length=100000")
    assert run(TARGET, *MOCKED, *made, *limits, "--save-trace", kept) == 0
    assert run(TARGET, *MOCKED, *limits, "--trace", kept, "--save-trace", again) == 0
    assert kept.read_bytes() == again.read_bytes()


def test_nobody_served_is_a_failure(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TARGET, *MOCKED, "--trace", trace, "--mocker", "context_length=100") == 1
    assert "maximum context length is 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --trace and --workload"),
        (("--workload", "unique", "--trace", "x"), "give one of --trace and --workload"),
        (("--workload", "unique", "--speed", "2"), "--speed and --requests are for traces"),
        (("--workload", "no"), "no workload 'no'"),
        (("--trace", "/no/such/file"), "cannot read the trace"),
        (("--workload", "unique", "--mocker", "num_blocks"), "'num_blocks' is no KEY=VALUE"),
        (("--workload", "unique", "--compare", "no"), "no router 'no'"),
        (("--workload", "unique", "--json", "/no/such/folder/x"), "cannot write"),
    ],
)
def test_wrong_input_is_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(TARGET, *MOCKED, *arguments) == 2
    assert said in capsys.readouterr().err


def test_every_option_is_on_the_page() -> None:
    command = get_command(build_app(["simulate"])).commands["simulate"]  # type: ignore[attr-defined]
    real = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    rows = table_rows(section(page("simulate.md"), "Options"))
    described = {word for row in rows for word in code_words(row[0])}
    assert described == {name for name in real if name.startswith("-")} - {"--debug"}
