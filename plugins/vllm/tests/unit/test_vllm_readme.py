"""The tables of the README are the fields that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from dynamo_sdk.engines.openai.config import OpenAIConfig
from dynamo_sdk_vllm.config import VllmConfig
from dynamo_sdk_vllm.remote import VllmRemoteConfig

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model", "without"),
    [("## vllm\n", VllmConfig, BaseModel), ("## vllm-remote\n", VllmRemoteConfig, OpenAIConfig)],
)
def test_arguments_are_complete(heading: str, model: type[BaseModel], without: type[BaseModel]):
    section = README.split(heading)[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", section, re.MULTILINE))
    inherited = set(without.model_fields)
    real = {
        name: str(field.get_default(call_default_factory=True)) or "empty"
        for name, field in model.model_fields.items()
        if name not in inherited
    }
    assert {name: default.strip() for name, default in shown.items()} == real


def test_what_cannot_be_set_is_said():
    assert all(f"`{name}`" in README for name in VllmConfig.owned)
