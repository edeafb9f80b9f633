"""Loading a graph: what is found, and what is said when it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_sdk.errors import GraphError
from dynamo_sdk.runtime.target import load_graph

GRAPH = """
from dynamo_sdk import Graph, service

@service
class Only:
    pass

graph = Graph(Only)
other = Graph(Only, router="random")
number = 3
"""


@pytest.fixture(autouse=True)
def _import_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _write(folder: Path, name: str, text: str = GRAPH) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def _refusal(target: str) -> str:
    with pytest.raises(GraphError) as caught:
        load_graph(target)
    return caught.value.message


def test_the_default_name_is_graph(tmp_path: Path) -> None:
    assert load_graph(_write(tmp_path, "served.py")).router is None


def test_a_name_after_the_colon_is_looked_up(tmp_path: Path) -> None:
    assert load_graph(_write(tmp_path, "served.py") + ":other").router == "random"


def test_a_file_whose_name_is_no_identifier_can_be_named_by_import_strings(tmp_path: Path) -> None:
    graph = load_graph(_write(tmp_path, "01-first steps.py"))
    module = graph.roots[0].__module__
    assert module == "_01_first_steps"
    assert graph.modules() == (sys.modules[module],)


def test_loading_twice_gives_the_same_classes(tmp_path: Path) -> None:
    target = _write(tmp_path, "served.py")
    assert load_graph(target) == load_graph(target)


def test_files_of_one_name_do_not_get_mixed_up(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", "served.py"), _write(tmp_path / "b", "served.py")
    assert load_graph(first).roots != load_graph(second).roots


def test_a_file_named_like_the_standard_library_does_not_replace_it(tmp_path: Path) -> None:
    load_graph(_write(tmp_path, "sched.py"))
    assert "sched" not in sys.modules


def test_a_file_can_import_its_neighbour_and_the_neighbour_it(tmp_path: Path) -> None:
    _write(tmp_path / "app", "part.py", "from dynamo_sdk import service\n@service\nclass Part: ...\n")
    target = _write(
        tmp_path / "app",
        "whole.py",
        "from dynamo_sdk import Graph\nfrom part import Part\ngraph = Graph(Part)\n",
    )
    assert load_graph(target).service("Part").__module__ == "part"
    assert load_graph(target) is sys.modules["whole"].graph


def test_a_module_is_found_from_the_current_folder(tmp_path: Path) -> None:
    _write(tmp_path / "package_of_test", "serving.py")
    assert load_graph("package_of_test.serving:other").router == "random"


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    _write(tmp_path, "served.py")
    assert f"did you mean '{tmp_path / 'served.py'}'?" in _refusal(str(tmp_path / "servd.py"))


def test_a_missing_name_names_the_nearest_graph(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path, "served.py") + ":othr")
    assert "there is no 'othr' in it; did you mean ':other'? (graphs: graph, other)" in message


def test_something_that_is_no_graph_is_shown(tmp_path: Path) -> None:
    assert "'number' is 3, not a Graph" in _refusal(_write(tmp_path, "served.py") + ":number")


def test_a_file_without_a_graph_says_how_to_make_one(tmp_path: Path) -> None:
    assert "define one, e.g. `graph = Graph(Api)`" in _refusal(_write(tmp_path, "served.py", "x = 1\n"))


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    assert "there is no module 'no_such_package'" in _refusal("no_such_package.serving")


def test_a_file_without_its_ending_is_a_module_of_the_current_folder(tmp_path: Path) -> None:
    _write(tmp_path, "served.py")
    assert load_graph("served").router is None


def test_a_path_without_its_ending_says_so(tmp_path: Path) -> None:
    _write(tmp_path / "app", "served.py")
    assert "for a file write its name with .py" in _refusal("app/served")


@pytest.mark.parametrize("target", ["", ":", "graph.py:", ":graph", "graph.py:a-b"])
def test_what_is_no_target_is_refused(target: str) -> None:
    assert "names no graph" in _refusal(target)


@pytest.mark.parametrize("by_file", [True, False])
def test_an_exception_shows_the_users_own_line(tmp_path: Path, by_file: bool) -> None:
    target = _write(tmp_path, "broken.py", "import json\nvalue = json.loads('{')\n")
    message = _refusal(target if by_file else "broken")
    assert f"{target}:2: value = json.loads('{{')" in message
    assert "JSONDecodeError" in message
    assert "broken" not in sys.modules


def test_a_marker_error_shows_the_users_line(tmp_path: Path) -> None:
    target = _write(tmp_path, "marked.py", "from dynamo_sdk import depends\nx = depends(3)\n")
    assert f"{target}:2: x = depends(3)" in _refusal(target)


def test_a_syntax_error_shows_file_and_line(tmp_path: Path) -> None:
    target = _write(tmp_path, "wrong.py", "def f(:\n")
    assert f"{target}:1: def f(:" in _refusal(target)


def test_exiting_while_loading_is_an_error_not_an_exit(tmp_path: Path) -> None:
    assert "SystemExit" in _refusal(_write(tmp_path, "leaves.py", "raise SystemExit(0)\n"))


def test_a_relative_import_names_the_other_form(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path, "inner.py", "from . import other\n"))
    assert "name it as package.module instead of a file" in message
