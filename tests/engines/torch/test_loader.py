"""What is read from a model folder, and what is said when it cannot be."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from pydantic import ValidationError

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.loader import load_model, model_digest
from dynamo_sdk.engines.torch.memory import choose_num_blocks
from dynamo_sdk.errors import EngineStartError

from .models import CONTEXT_LENGTH, VOCAB_SIZE
from .running import running_engine

CPU = TorchConfig(device="cpu")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_facts(llama: Path) -> None:
    model = load_model(str(llama), CPU)
    assert (model.context_length, model.vocab_size) == (CONTEXT_LENGTH, VOCAB_SIZE)
    assert model.eos_token_ids == ()
    assert (model.geometry.num_layers, model.geometry.num_kv_heads, model.geometry.head_dim) == (3, 2, 8)
    assert model.geometry.dtype is torch.float32
    assert not model.network.training


def test_end_tokens_come_from_the_generation_config_first(copy: Path) -> None:
    edit_json(copy / "config.json", eos_token_id=3)
    (copy / "generation_config.json").unlink()
    assert load_model(str(copy), CPU).eos_token_ids == (3,)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert load_model(str(copy), CPU).eos_token_ids == (4, 5)


def test_digest_tells_models_apart_but_not_folders(llama: Path, copy: Path) -> None:
    assert model_digest(llama) == model_digest(copy)
    edit_json(copy / "config.json", _name_or_path="elsewhere")
    assert model_digest(llama) == model_digest(copy)
    edit_json(copy / "config.json", rms_norm_eps=1e-3)
    changed = model_digest(copy)
    assert changed != model_digest(llama)
    original = (copy / "model.safetensors").read_bytes()
    digests = {changed}
    for place in range(8, len(original), 5003):  # an edit may be as small as one number, anywhere
        edited = bytearray(original)
        edited[place] ^= 1
        (copy / "model.safetensors").write_bytes(edited)
        digests.add(model_digest(copy))
    assert len(digests) == 1 + len(range(8, len(original), 5003))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineStartError, match=r"config\.json|safetensors"):
        load_model(str(copy), CPU)


def test_unreadable_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(EngineStartError, match="cannot load"):
        load_model(str(copy), CPU)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    edit_json(copy / "config.json", num_hidden_layers=4)
    with pytest.raises(EngineStartError, match=r"layers\.3"):
        load_model(str(copy), CPU)


def test_several_engines_of_one_process_load_at_once(folders: dict[str, Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_model(str(folders["gpt2"]), CPU), range(4)))
    for model in models:
        embeddings, head = model.network.get_input_embeddings(), model.network.get_output_embeddings()
        assert embeddings.weight.data_ptr() == head.weight.data_ptr(), "the weights are no longer tied"
        assert not head.weight.is_meta


def test_context_length_may_only_shrink(llama: Path) -> None:
    assert load_model(str(llama), TorchConfig(device="cpu", context_length=50)).context_length == 50
    with pytest.raises(EngineStartError, match=f"{CONTEXT_LENGTH}"):
        load_model(str(llama), TorchConfig(device="cpu", context_length=CONTEXT_LENGTH + 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(llama: Path) -> None:
    with pytest.raises(EngineStartError, match="device: cpu"):
        load_model(str(llama), TorchConfig(device="cuda"))


@pytest.mark.anyio
async def test_attention_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EngineStartError):
        async with running_engine(tmp_path):
            pass


def test_number_of_blocks(llama: Path) -> None:
    model = load_model(str(llama), CPU)
    block_bytes = model.geometry.block_bytes(16)
    assert choose_num_blocks(TorchConfig(num_blocks=7), model) == 7
    assert choose_num_blocks(TorchConfig(kv_memory_bytes=5 * block_bytes + 1), model) == 5
    assert choose_num_blocks(TorchConfig(max_num_seqs=3), model) == 3 * CONTEXT_LENGTH // 16
    with pytest.raises(EngineStartError, match=str(block_bytes)):
        choose_num_blocks(TorchConfig(kv_memory_bytes=block_bytes - 1), model)


def test_a_step_must_hold_all_sequences() -> None:
    with pytest.raises(ValidationError, match="max_num_seqs"):
        TorchConfig(max_num_seqs=10, max_num_batched_tokens=9)
