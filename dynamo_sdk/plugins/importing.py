"""From an import string to the object it names, with an error that says which half is wrong."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from dynamo_sdk.errors import PluginError

from .problems import place_of_error


def import_object(import_string: str, *, what: str, requirement: str | None = None) -> object:
    """The object behind ``package.module:Name``.

    ``what`` opens each error (``engine 'torch'``); ``requirement`` is what ``pip install`` needs when a
    module is missing. Raises ``PluginError``.
    """
    module_name, _, path = import_string.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        fix = f"; try: pip install '{requirement}'" if requirement else ""
        where = _where(place_of_error(error))
        raise PluginError(
            f"{what} needs the module {error.name!r}, which is not installed{fix}{where}"
        ) from error
    except Exception as error:
        raise PluginError(
            f"{what}: importing {module_name} raised {type(error).__name__}: {error}"
            f"{_where(place_of_error(error))}"
        ) from error
    found: object = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            close = get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            where = _where((module.__file__, None))
            raise PluginError(f"{what}: {import_string} does not exist{hint}{where}") from None
    return found


def _where(place: tuple[str | None, int | None]) -> str:
    file, line = place
    if file is None:
        return ""
    return f" ({file}:{line})" if line else f" ({file})"
