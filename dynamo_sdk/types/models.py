"""Models, as a deploy file names them and as workers announce them."""

from __future__ import annotations

import msgspec


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` is what clients say; ``path`` a folder in the Hugging Face style on this host."""

    name: str
    path: str


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter of some model. ``name`` is what clients say in place of the model's; ``path`` a folder
    in PEFT's style on this host: ``adapter_config.json`` and ``adapter_model.safetensors``."""

    name: str
    path: str


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker announces, and all a frontend needs to build the model's pipeline.

    ``parent``: the base model's name when this is a LoRA adapter. ``digest`` names config and weights,
    where the engine can tell: workers of one model must have the same.
    """

    name: str
    path: str
    context_length: int
    block_size: int | None = None
    parent: str | None = None
    digest: str | None = None
