"""LoRA adapters on the network's linear layers: each token gets the deltas of its own request's adapter.

Beside ``y = W x`` a layer that an adapter changes computes ``up (down x)`` for the tokens of that adapter,
and adds it. The model's weights stay as they are: one step can hold the model and any number of adapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dynamo_sdk.errors import InvalidRequest

_PREFIX = "base_model.model."
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""Settings of PEFT that would change what an adapter computes, and their values that do not."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """``layers``: by the name of a linear layer its ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``, the
    scale included."""

    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class LoraLayers:
    """The linear layers of ``network``, the output layer excepted: it sees sampled tokens only. Everything
    here runs on the engine's one worker thread."""

    def __init__(self, network: Any) -> None:
        self._linears = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not network.get_output_embeddings()
        }
        self._hooked: set[str] = set()
        self._parts: Sequence[tuple[LoraWeights, torch.Tensor]] = ()

    def load(self, path: str) -> LoraWeights:
        """Raises ``InvalidRequest``, naming what does not fit."""
        scale, tensors = _read(Path(path))
        layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name in sorted({_layer_of(key) for key in tensors}):
            linear = self._linears.get(name)
            if linear is None:
                raise InvalidRequest(f"{name!r} is no linear layer of this model", param="lora")
            down, up = (tensors.get(f"{_PREFIX}{name}.lora_{part}.weight") for part in "AB")
            if down is None or up is None:
                raise InvalidRequest(f"one half of the adapter of {name!r} is missing", param="lora")
            needed = (linear.in_features, down.shape[0], linear.out_features)
            if down.dim() != 2 or up.dim() != 2 or (down.shape[1], up.shape[1], up.shape[0]) != needed:
                raise InvalidRequest(
                    f"the adapter of {name!r} is {tuple(down.shape)} and {tuple(up.shape)}; the layer has "
                    f"{linear.in_features} inputs and {linear.out_features} outputs",
                    param="lora",
                )
            weight = linear.weight
            layers[name] = (
                down.to(weight.device, weight.dtype),
                (up.float() * scale).to(weight.device, weight.dtype),
            )
        for name in layers.keys() - self._hooked:
            self._hook(name)
        return LoraWeights(layers)

    @contextmanager
    def applied(self, parts: Sequence[tuple[LoraWeights, torch.Tensor]]) -> Iterator[None]:
        """Each of ``parts`` names tokens of the step, by their places in the single row, for one adapter."""
        self._parts = parts
        try:
            yield
        finally:
            self._parts = ()

    def _hook(self, name: str) -> None:
        def add_deltas(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for weights, tokens in self._parts:
                layer = weights.layers.get(name)
                if layer is not None:
                    down, up = layer
                    output[0].index_add_(0, tokens, inputs[0][0, tokens] @ down.T @ up.T)

        self._linears[name].register_forward_hook(add_deltas)
        self._hooked.add(name)


def _layer_of(key: str) -> str:
    name, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
    if not key.startswith(_PREFIX) or part not in ("A.weight", "B.weight"):
        raise InvalidRequest(f"{key!r} is no weight of a LoRA on a linear layer", param="lora")
    return name


def _read(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The factor of all deltas, and the tensors by PEFT's names."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InvalidRequest(
            f"no LoRA adapter can be read from {str(folder)!r} ({type(error).__name__}: {error}); it needs "
            "adapter_config.json and adapter_model.safetensors",
            param="lora",
        ) from error
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral[0]) not in neutral:
            raise InvalidRequest(f"the torch engine knows no {name}: {config[name]!r}", param="lora")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank), tensors
