"""Processes that begin with vLLM imported, for tests that start many engines.

vLLM has its engine run in a *spawned* process, which imports all of vLLM first: most of the time of a start
with a tiny model. Here such a process is a copy of one that has done its imports and nothing else. What
vLLM runs in it stays the same; graphs and servers, which are processes of their own, start as ever.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import pytest

IMPORTED = ["vllm.v1.engine.core", "vllm.v1.engine.async_llm", "vllm.v1.worker.gpu_worker"]


class WarmProcess(ForkServerProcess):
    """Has the environment that its parent has when it starts, as a spawned process would."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class WarmContext(ForkServerContext):
    """Stands in for ``spawn``."""

    _name = "spawn"
    Process = WarmProcess


def warm_processes(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone, spawned processes are warm."""
    context = WarmContext()
    context.set_forkserver_preload(IMPORTED)
    patch.setitem(multiprocessing.context._concrete_contexts, "spawn", context)
