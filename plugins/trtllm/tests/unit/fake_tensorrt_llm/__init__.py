"""A stand-in for TensorRT-LLM, as strict as ``contract.json``: its classes and methods are made from the
contract, know the parameters of one version and refuse all others. What they do is what the contract
believes of the real ones; it proves nothing about them.

``install(version)`` puts it into ``sys.modules``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .llm import Outputs, RequestError, World, make_llm
from .strict import load as load_contract
from .strict import record_type

__all__ = ["RequestError", "World", "install", "uninstall"]


def install(version: str = "1.3", **limits: int) -> World:
    """``limits``: ``num_blocks``, ``vocab_size``. The world says what happened, and holds things up."""
    contract = load_contract()
    types = {
        called.name.partition(":")[2]: record_type(called, version)
        for called in contract.callables
        if "." not in called.name.partition(":")[2] and not called.name.endswith(":LLM")
    }
    world = World(version=version, types=types, **limits)
    llmapi: dict[str, Any] = {
        **types,
        "LLM": make_llm(contract, version, world),
        "RequestOutput": Outputs,
        "CompletionOutput": Outputs.Completion,
    }
    modules = {
        "tensorrt_llm": {"__version__": f"{version}.0+fake", "__path__": []},
        "tensorrt_llm.llmapi": llmapi,
        "tensorrt_llm.scheduling_params": {"SchedulingParams": types["SchedulingParams"]},
        "tensorrt_llm.executor": {"__path__": []},
        "tensorrt_llm.executor.result": {"Logprob": types["Logprob"]},
    }
    uninstall()
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    return world


def uninstall() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]
