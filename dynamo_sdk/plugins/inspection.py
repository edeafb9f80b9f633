"""Reading a plugin's functions for the mistakes that pluggy lets pass, or reports late and vaguely."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches

from . import hookspecs
from .markers import PROJECT
from .problems import Problem, Rule, Source, place_of_function

HOOK_ARGUMENTS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name.startswith(f"{PROJECT}_") and inspect.isfunction(spec)
}
"""Every hook, and the names of its arguments."""


def inspect_plugin(plugin: object, source: Source) -> Iterator[Problem]:
    """What is wrong with the functions of ``plugin``, without calling any."""
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        if not inspect.isroutine(function):
            continue
        options = getattr(function, f"{PROJECT}_impl", None)
        if isinstance(options, dict):
            yield from _check_marked(function, options.get("specname") or name, options, source)
        elif name.startswith(f"{PROJECT}_"):
            yield _problem(
                source, function, Rule.HOOK_MARKED, f"{name} lacks @dynamo_sdk.hookimpl and is never called"
            )


def _check_marked(
    function: Callable[..., object], hook: str, options: dict[str, object], source: Source
) -> Iterator[Problem]:
    if hook not in HOOK_ARGUMENTS:
        close = get_close_matches(hook, HOOK_ARGUMENTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f" (hooks: {', '.join(HOOK_ARGUMENTS)})"
        if not options.get("optionalhook"):
            yield _problem(source, function, Rule.HOOK_KNOWN, f"there is no hook {hook}{hint}")
        return
    if options.get("wrapper") or options.get("hookwrapper"):
        yield _problem(
            source, function, Rule.HOOK_SIGNATURE, f"{hook} is marked as a wrapper; hooks are not wrapped"
        )
        return
    arguments = HOOK_ARGUMENTS[hook]
    unknown = [name for name in inspect.signature(function).parameters if name not in arguments]
    if unknown:
        expected = f"{hook}({', '.join(arguments)})"
        yield _problem(
            source, function, Rule.HOOK_SIGNATURE, f"{hook} takes {', '.join(unknown)}; write {expected}"
        )


def _problem(source: Source, function: Callable[..., object], rule: Rule, message: str) -> Problem:
    file, line = place_of_function(function)
    return Problem(source=source, rule=rule, message=message, file=file, line=line, is_fatal=True)
