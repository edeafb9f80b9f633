"""From what a deploy file says (`demo`, a folder, a Hugging Face id) to a folder on this host."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dynamo_sdk.errors import ConfigError

DEMO = "demo"


def resolve_model_path(path: str) -> Path:
    """The absolute folder. Raises ``ConfigError`` that says what was looked for and what to try."""
    if path == DEMO:
        return Path(str(files("dynamo_sdk").joinpath("demo_model")))
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model path {path!r} has no config.json; name a Hugging Face style folder")
        return folder.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"no folder {path!r}; name a Hugging Face style folder, a Hugging Face id or 'demo'"
        )
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
