"""Engines of plugins in this repository, which are distributions of their own: what to install for which."""

from __future__ import annotations

from collections.abc import Mapping

DISTRIBUTIONS: Mapping[str, tuple[str, str]] = {
    "sglang": ("dynamo-sdk-sglang", "plugins/sglang"),
    "trtllm": ("dynamo-sdk-trtllm", "plugins/trtllm"),
    "vllm": ("dynamo-sdk-vllm", "plugins/vllm"),
    "vllm-remote": ("dynamo-sdk-vllm", "plugins/vllm"),
}
"""By the name of an engine: the distribution that offers it, and its folder in this repository."""


def how_to_install(engine: str) -> str | None:
    """What to type for ``engine``; None where nobody here knows it."""
    if engine not in DISTRIBUTIONS:
        return None
    distribution, folder = DISTRIBUTIONS[engine]
    return f"pip install {distribution} (in a checkout: pip install ./{folder})"
