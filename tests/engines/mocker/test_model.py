"""What is read of a model, and what a deploy file may say instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dynamo_sdk.engines.mocker import MockerConfig, build_cores
from dynamo_sdk.engines.mocker.model import MockedModel, read_model
from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.runtime.model_path import resolve_model_path


def test_the_demo_model() -> None:
    assert read_model(str(resolve_model_path("demo")), MockerConfig()) == MockedModel(
        vocab_size=1536, context_length=2048, eos_token_ids=(1,), kv_bytes_per_token=2 * 4 * 2 * 64 * 4
    )


def test_an_older_config_without_head_dim_and_with_two_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"vocab_size": 128256, "max_position_embeddings": 8192, "eos_token_id": [128001, 128009],'
        ' "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,'
        ' "torch_dtype": "bfloat16", "rope_scaling": {"factor": 8.0}}'
    )
    model = read_model(str(tmp_path), MockerConfig())
    assert (model.kv_bytes_per_token, model.eos_token_ids) == (131_072, (128001, 128009))


def test_no_model_at_all(tmp_path: Path) -> None:
    config = MockerConfig(num_blocks=10, block_size=32)
    assert read_model(str(tmp_path), config) == MockedModel(
        vocab_size=32_000, context_length=None, eos_token_ids=(), kv_bytes_per_token=131_072
    )
    assert build_cores(str(tmp_path), config)[0].max_length == 320


def test_the_deploy_file_comes_first() -> None:
    config = MockerConfig(vocab_size=99, context_length=77, kv_bytes_per_token=0)
    model = read_model(str(resolve_model_path("demo")), config)
    assert (model.vocab_size, model.context_length, model.kv_bytes_per_token) == (99, 77, 0)


@pytest.mark.parametrize("text", ["{", '{"vocab_size": "many"}'])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(EngineStartError, match=r"cannot read .*config\.json"):
        read_model(str(tmp_path), MockerConfig())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_num_seqs": 9000}, "each running sequence computes a token per step"),
        ({"output_ids": (5, 5)}, "two rising numbers"),
        ({"speedup_ratio": 0}, "greater than 0"),
        ({"speedup": 2}, "Extra inputs"),
    ],
)
def test_limits_that_cannot_work(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MockerConfig(**args)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"vocab_size": 10, "output_ids": (10, 20)}, "no token ids to say"),
        ({"eos_after_tokens": 3}, "needs a model that has an end token"),
    ],
)
def test_what_only_the_model_can_tell(tmp_path: Path, args: dict[str, object], message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        build_cores(str(tmp_path), MockerConfig(**args))  # type: ignore[arg-type]
