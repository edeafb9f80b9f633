"""From what a deploy file says of a model (`demo`, a folder, a Hugging Face id) or of a LoRA adapter to a
folder on this host."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dynamo_sdk.errors import ConfigError

DEMO = "demo"


def resolve_model_path(path: str) -> Path:
    """The absolute folder. Raises ``ConfigError`` that says what was looked for and what to try."""
    if path == DEMO:
        return Path(str(files("dynamo_sdk").joinpath("demo_model")))
    return _resolve(path, "model", "config.json", "a Hugging Face style folder, a Hugging Face id or 'demo'")


def resolve_lora_path(path: str) -> Path:
    """The same for the folder of a LoRA adapter."""
    return _resolve(path, "adapter", "adapter_config.json", "a folder in PEFT's style or a Hugging Face id")


def _resolve(path: str, kind: str, file: str, allowed: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / file).is_file():
            raise ConfigError(f"{kind} path {path!r} has no {file}; name {allowed}")
        return folder.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(f"no folder {path!r}; name {allowed}")
    return _download(path)


def _download(model_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"no folder {model_id!r}, and a Hugging Face id needs: pip install huggingface_hub"
        ) from None
    try:
        return Path(
            snapshot_download(model_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"])
        )
    except Exception as error:  # the hub's errors share no base class
        raise ConfigError(
            f"no folder {model_id!r}, and it could not be had from the Hugging Face hub: {error}"
        ) from error
