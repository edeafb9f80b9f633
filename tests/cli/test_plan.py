"""``dynamo-sdk plan``, from the words of a command line to what is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from dynamo_sdk.cli.plan import plan
from dynamo_sdk.errors import ConfigError, GraphError
from dynamo_sdk.types.plan import DeploymentPlan

GRAPH = """
from dynamo_sdk import Graph, depends, service
from dynamo_sdk.graph import EngineService, FrontendService

@service
class Worker(EngineService):
    pass

@service
class Api(FrontendService):
    worker = depends(Worker)

graph = Graph(Api)
"""

DEPLOY = """
services:
  Worker: {engine: echo, replicas: 2}
"""


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(plan)
    return app


@pytest.fixture
def graph_file(tmp_path: Path) -> str:
    (tmp_path / "deploy.yaml").write_text(DEPLOY)
    (tmp_path / "planned.py").write_text(GRAPH)
    return str(tmp_path / "planned.py")


def _plan(app: typer.Typer, *words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (
            "{name: shadow, args: {shadows: [kv, nope]}}",
            "router.args.shadows[1]: no router 'nope' to put inside",
        ),
        ("{name: shadow, args: {acting: nope}}", "router.args.acting: no router 'nope'"),
        (
            "{name: session, args: {otherwise: 'mine:Router'}}",
            "router.args.otherwise: cannot import 'mine:Router'",
        ),
        (
            "{name: kv, args: {filters: ['planned:short']}}",
            "router.args.filters[0]: cannot import 'planned:short'",
        ),
    ],
)
def test_routers_and_stages_inside_a_router_are_there_or_refused(
    app: typer.Typer, graph_file: str, router: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(app, graph_file, "--set", f"router={router}")
    assert message in caught.value.message


def test_a_stage_beside_the_graph_file_is_found(app: typer.Typer, graph_file: str) -> None:
    Path(graph_file).with_name("beside_the_graph.py").write_text(
        "def keep_all(request, candidates, _):\n    ...\n"
    )
    assert "keep_all" in _plan(
        app, graph_file, "--set", "router={name: kv, args: {filters: ['beside_the_graph:keep_all']}}"
    )


def test_tables_show_services_and_origins(app: typer.Typer, graph_file: str) -> None:
    shown = _plan(app, graph_file, "--set", "services.Worker.engine=echo")
    assert "2 services, 2 processes, 0 GPUs" in shown
    assert "command line" in shown


def test_json_is_the_plan(app: typer.Typer, graph_file: str) -> None:
    deploy = str(Path(graph_file).with_name("deploy.yaml"))
    text = _plan(app, graph_file, "-f", deploy, "--set", "services.Worker.cpus=1", "--json")
    decoded = msgspec.json.decode(text, type=DeploymentPlan)
    assert decoded.target == graph_file
    assert len(decoded.service("Worker").replicas) == 2
    assert decoded.service("Worker").cpus_per_replica == 1


def test_mermaid_is_a_flowchart(app: typer.Typer, graph_file: str) -> None:
    assert _plan(app, graph_file, "--set", "services.Worker.engine=echo", "--mermaid").startswith(
        "flowchart LR\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-f", "{folder}/deploy.yaml", "--set", "services.Wrker.gpus=1"], "did you mean 'Worker'"),
        (["-f", "{folder}/nothing.yaml"], "cannot read the deploy file"),
        (["--launcher", "lokal"], "no launcher 'lokal'"),
        (["--json", "--mermaid"], "exclude each other"),
    ],
)
def test_wrong_input_is_a_config_error(
    app: typer.Typer, graph_file: str, words: list[str], message: str
) -> None:
    folder = str(Path(graph_file).parent)
    with pytest.raises(ConfigError, match=message):
        _plan(app, graph_file, *(word.format(folder=folder) for word in words))


def test_a_problem_of_the_deploy_file_has_its_name_and_line(
    app: typer.Typer, graph_file: str, tmp_path: Path
) -> None:
    deploy = tmp_path / "mine.yaml"
    deploy.write_text("services:\n  Worker:\n    replcas: 2\n")
    with pytest.raises(ConfigError, match=r"mine.yaml, line 3: services.Worker.replcas: unknown key"):
        _plan(app, graph_file, "-f", str(deploy))


def test_a_missing_graph_is_a_graph_error(app: typer.Typer, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="there is no file"):
        _plan(app, str(tmp_path / "nothing.py"))


def test_importing_the_command_imports_nothing_heavy() -> None:
    probe = (
        "import sys; import dynamo_sdk.cli.plan; "
        "print(*{'pydantic', 'msgspec', 'yaml', 'torch', 'pluggy', 'anyio'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    # the package of the commands may bring in others' imports; ours are inside the functions
    assert shown.split() == []
