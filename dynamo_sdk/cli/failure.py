"""An error as people want to read it: a red panel on a terminal, plain text in a log."""

from __future__ import annotations

import sys

from dynamo_sdk.launch.exits import EXIT_USER_ERROR, exit_code, innermost, readable


def report(error: BaseException) -> int:
    """Print ``error`` as one block on standard error; returns the exit code that goes with it."""
    cause = innermost(error)
    code = exit_code(cause)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        title = "check your input" if code == EXIT_USER_ERROR else "failed"
        block = Panel(Text(readable(cause)), title=title, title_align="left", border_style="red")
        Console(stderr=True).print(block)
    else:
        sys.stderr.write(f"error: {readable(cause)}\n")
    return code
