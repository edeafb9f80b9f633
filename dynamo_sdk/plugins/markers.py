"""pluggy's two markers. They set an attribute on a function and leave the function what it is."""

from __future__ import annotations

import pluggy

PROJECT = "dynamo_sdk"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as an implementation of the hook whose name it bears."""
