"""The command ``dynamo-sdk``. Its subcommands import what they need when they run, not before."""

from .main import main

__all__ = ["main"]
