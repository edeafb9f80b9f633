"""From what the user typed (``graph.py``, ``graph.py:name``, ``package.module:name``) to the ``Graph``.

A file is loaded as a script would be: its folder comes first on ``sys.path``, so that it can import its
neighbours. A module is looked up from the current folder, too. Loading runs the user's code and nothing
else; two loads of one file give the same module.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import os
import re
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from dynamo_sdk.errors import DynamoError, GraphError
from dynamo_sdk.graph import Graph

DEFAULT_NAME = "graph"


def load_graph(target: str) -> Graph:
    """Import what ``target`` names. Raises ``GraphError`` saying what is not there, or where in the
    user's code an exception came from."""
    place, name = _split(target)
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place, target)
    found = getattr(module, name, None)
    if isinstance(found, Graph):
        return found
    graphs = [known for known, value in vars(module).items() if isinstance(value, Graph)]
    if found is not None:
        raise GraphError(f"{target}: {name!r} is {found!r}, not a Graph{_options(name, graphs)}")
    raise GraphError(f"{target}: there is no {name!r} in it{_options(name, graphs)}")


def _split(target: str) -> tuple[str, str]:
    if target.endswith(".py"):
        return target, DEFAULT_NAME
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = target, DEFAULT_NAME
    if not name.isidentifier() or not place:
        raise GraphError(f"{target!r} names no graph; write graph.py, graph.py:name or package.module:name")
    return place, name


def _options(name: str, graphs: list[str]) -> str:
    if not graphs:
        return "; define one, e.g. `graph = Graph(Api)`"
    near = get_close_matches(name, graphs, n=1, cutoff=0.4)
    question = f"; did you mean ':{near[0]}'?" if near else ""
    return f"{question} (graphs: {', '.join(graphs)})"


def _load_file(file: Path) -> ModuleType:
    if not file.is_file():
        neighbours = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = get_close_matches(file.name, neighbours, n=1)
        hint = f"; did you mean {str(file.parent / near[0])!r}?" if near else f" (looked in {Path.cwd()})"
        raise GraphError(f"there is no file {str(file)!r}{hint}")
    file = file.resolve()
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise GraphError(f"{file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    _search_first(str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _explain(str(file), error) from error
    return module


def _module_name(file: Path) -> str:
    """The file's own name, so that neighbours that import it get the same module; made an identifier, so
    that import strings can name it; with a suffix where that name belongs to another module."""
    name = re.sub(r"\W|^(?=\d)", "_", file.stem)
    present = sys.modules.get(name)
    is_ours = present is not None and getattr(present, "__file__", None) == str(file)
    if is_ours or (present is None and name not in sys.stdlib_module_names):
        return name
    return f"{name}_{hashlib.blake2b(os.fsencode(file), digest_size=4).hexdigest()}"


def _load_module(name: str, target: str) -> ModuleType:
    _search_first(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "; for a file write its name with .py" if Path(f"{name}.py").is_file() else ""
            raise GraphError(f"{target}: there is no module {error.name!r}{hint}") from error
        raise _explain(name, error) from error
    except (Exception, SystemExit) as error:
        raise _explain(name, error) from error


def _search_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _explain(what: str, error: BaseException) -> GraphError:
    """What went wrong in the user's code, with the last line of it that was running."""
    if isinstance(error, SyntaxError) and error.filename:
        where, line = f"{error.filename}:{error.lineno}", (error.text or "").strip()
        return GraphError(f"{what} has a syntax error\n  {where}: {line}\n  {error.msg}")
    reason = error.message if isinstance(error, DynamoError) else f"{type(error).__name__}: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return GraphError(f"{what} cannot be imported\n  {reason}")
    frame = frames[-1]
    line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    hint = "; name it as package.module instead of a file" if "relative import" in reason else ""
    return GraphError(
        f"{what} cannot be imported\n  {frame.filename}:{frame.lineno}: {line}\n  {reason}{hint}"
    )


def _is_users(filename: str) -> bool:
    """Neither this package, nor an installed one, nor the standard library."""
    package = str(Path(__file__).resolve().parents[1]) + os.sep
    standard = str(Path(os.__file__).parent) + os.sep
    return "site-packages" not in filename and not filename.startswith(("<", package, standard))
