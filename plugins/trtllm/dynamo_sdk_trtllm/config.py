"""What a deploy file may say about the ``trtllm`` engine, and how it becomes arguments of TensorRT-LLM.

Nearly everything under ``services.X.args`` is TensorRT-LLM's: it is passed on as it is written, and checked
against the installed version when the worker starts. What we set ourselves is dropped where that version
does not know it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dynamo_sdk.engines.foreign_arguments import ForeignArguments, accepted, require_known
from dynamo_sdk.errors import ConfigError, EngineStartError
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.types import Role

NAME = "TensorRT-LLM"
EVENT_BUFFER_SIZE = 65536
"""Events that TensorRT-LLM keeps until they are read; without a buffer it makes none."""


class TensorRTConfig(ForeignArguments):
    """Our own arguments; all others are fields of TensorRT-LLM's ``TorchLlmArgs``."""

    owned = {
        "model": "it is the model of the deploy file",
        "skip_tokenizer_init": "TensorRT-LLM finds the model's end tokens with its tokenizer",
        "num_postprocess_workers": "tokens are turned into text in the frontend",
    }

    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the worker's process, set before the import"
    )
    context_length: int | None = Field(
        default=None, ge=2, description="tokens of prompt and output; without it, what the engine says"
    )
    kv_transfer_timeout_s: float = Field(
        default=60.0, gt=0, description="how long prefill keeps blocks that nobody has fetched yet"
    )
    kv_transfer_backend: str = Field(
        default="DEFAULT", description="of the cache transceiver: DEFAULT, UCX, NIXL, MOONCAKE or MPI"
    )


def llm_arguments(llmapi: Any, setup: EngineSetup, config: TensorRTConfig) -> dict[str, Any]:
    """Keyword arguments for ``LLM``; ``llmapi`` is the module ``tensorrt_llm.llmapi``.

    What the deploy file says goes before our defaults. Raises ``ConfigError`` for what the installed
    version does not know, ``EngineStartError`` where it cannot hand over.
    """
    written = config.written
    known = getattr(llmapi, "TorchLlmArgs", llmapi.LLM)
    require_known(known, written, engine=NAME)
    ours: dict[str, object] = {"enable_iter_perf_stats": True, "max_seq_len": config.context_length}
    written["kv_cache_config"] = _section(
        llmapi.KvCacheConfig,
        written.get("kv_cache_config"),
        {"enable_block_reuse": True, "event_buffer_max_size": EVENT_BUFFER_SIZE},
        path="args.kv_cache_config",
    )
    if setup.connector is not None:
        if setup.role is Role.PREFILL:
            ours["disable_overlap_scheduler"] = True
        written["cache_transceiver_config"] = _transceiver(llmapi, written, config)
    given = {name: value for name, value in ours.items() if value is not None}
    return {"model": setup.model.path, **accepted(known, given), **written}


def longest_sequence(folder: str) -> int | None:
    """What the model's own ``config.json`` says; None = it does not."""
    try:
        written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    length = written.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _section(
    section: Callable[..., object], written: object, ours: dict[str, object], *, path: str
) -> object:
    if written is not None and not isinstance(written, Mapping):
        raise ConfigError(f"{path} is {written!r}, not a table", param=path)
    table = dict(written or {})
    require_known(section, table, engine=NAME, path=path)
    return section(**(accepted(section, ours) | table))


def _transceiver(llmapi: Any, written: Mapping[str, object], config: TensorRTConfig) -> object:
    """Older versions write the names of backends in lower case."""
    refusal: Exception | None = None
    for backend in (config.kv_transfer_backend, config.kv_transfer_backend.lower()):
        ours: dict[str, object] = {
            "backend": backend,
            "kv_transfer_timeout_ms": round(1000 * config.kv_transfer_timeout_s),
        }
        try:
            return _section(
                llmapi.CacheTransceiverConfig,
                written.get("cache_transceiver_config"),
                ours,
                path="args.cache_transceiver_config",
            )
        except ValueError as error:
            refusal = error
    raise EngineStartError(f"TensorRT-LLM refuses the cache transceiver: {refusal}") from refusal
