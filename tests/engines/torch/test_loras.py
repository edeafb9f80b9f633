"""Adapters of the torch engine: what merged weights give, for each row of a batch its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynamo_sdk.engines.torch.loras import LoraLayers, LoraWeights
from dynamo_sdk.errors import InvalidRequest, ModelNotFound, TransferError
from dynamo_sdk.types import BlocksStored, EmbedRequest, KVEventBatch, LoraSpec, Role, pack_tokens

from .adapters import merged, save_adapter
from .models import greedy_reference, logprobs_reference, random_prompt
from .running import GREEDY, a_request, answer, assert_all_free, running_engine

pytestmark = pytest.mark.anyio

PROMPTS = [random_prompt(seed, length) for seed, length in enumerate((3, 17, 40, 9))]

References = dict[str, torch.nn.Module]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("chunk", [2048, 16], ids=["whole prompts", "chunks"])
async def test_equals_merged_weights_in_one_batch_with_others(
    architecture: str,
    chunk: int,
    folders: dict[str, Path],
    references: References,
    tmp_path: Path,
    device: str,
) -> None:
    folder, reference = folders[architecture], references[architecture]
    loras = [
        save_adapter(reference, tmp_path / "wide"),
        save_adapter(reference, tmp_path / "narrow", seed=2, rank=1, targets=("v_proj",)),
    ]
    models = {None: reference} | {lora.name: merged(folder, lora) for lora in loras}
    settings = {"device": device, "dtype": "float32", "max_num_batched_tokens": chunk}
    async with running_engine(folder, **settings) as engine:
        for lora in loras:
            await engine.load_lora(lora)
        asked = [(name, prompt) for prompt in PROMPTS for name in models]
        requests = [
            a_request(prompt, request_id=f"r{index}", lora=name) for index, (name, prompt) in enumerate(asked)
        ]
        answers = await asyncio.gather(*(answer(engine, request) for request in requests))
    expected = [greedy_reference(models[name], prompt, GREEDY.max_tokens) for name, prompt in asked]
    assert [found.token_ids for found in answers] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(asked), "an adapter must change something"


@pytest.mark.parametrize(
    ("config", "scale"),
    [({"use_rslora": True}, 6 / 3**0.5), ({"lora_alpha": 3}, 1.0)],
    ids=["rslora", "alpha"],
)
async def test_logprobs_are_those_of_merged_weights(
    config: dict[str, object], scale: float, llama: Path, references: References, tmp_path: Path
) -> None:
    lora = save_adapter(references["llama"], tmp_path / "lora", **config)
    model = merged(llama, lora, scale=scale)
    async with running_engine(llama) as engine:
        await engine.load_lora(lora)
        sampling = type(GREEDY)(max_tokens=8, temperature=0.0, logprobs=0)
        found = await answer(engine, a_request(PROMPTS[1], sampling, lora="lora"))
    wanted = logprobs_reference(model, PROMPTS[1] + found.token_ids, len(found.token_ids))
    chosen = [wanted[place, token].item() for place, token in enumerate(found.token_ids)]
    assert [entry.logprob for entry in found.logprobs] == pytest.approx(chosen, abs=2e-4)


async def test_kv_is_found_by_weights_and_not_by_name(
    llama: Path, references: References, tmp_path: Path
) -> None:
    """The model, another adapter, and another adapter under the same name find nothing; the same one does."""
    one = save_adapter(references["llama"], tmp_path / "one")
    other = save_adapter(references["llama"], tmp_path / "other", seed=2)
    batches: list[KVEventBatch] = []

    async def num_cached(lora: str | None) -> int:
        usage = (await answer(engine, a_request(PROMPTS[2], lora=lora))).last.usage
        assert usage is not None
        return usage.num_cached_tokens

    async with running_engine(llama) as engine:
        engine.subscribe_kv_events(batches.append)
        await engine.load_lora(LoraSpec(name="x", path=one.path))
        assert [await num_cached(lora) for lora in ("x", None, "x")] == [0, 0, 36]
        await engine.unload_lora("x")
        await engine.load_lora(LoraSpec(name="x", path=other.path))
        assert await num_cached("x") == 0
        await engine.unload_lora("x")
        await engine.load_lora(LoraSpec(name="x", path=one.path))
        assert await num_cached("x") == 36
    named = {event.lora for batch in batches for event in batch.events if isinstance(event, BlocksStored)}
    assert named == {"x", None}


async def test_blocks_that_were_reserved_for_an_adapter_are_of_no_use_to_its_successor(
    llama: Path, references: References, tmp_path: Path
) -> None:
    """The name is the same; the KV that came meanwhile is not what the new weights give."""
    one = save_adapter(references["llama"], tmp_path / "one")
    other = save_adapter(references["llama"], tmp_path / "other", seed=2)
    request = a_request(PROMPTS[2], lora="x", role=Role.DECODE, generated=[1])
    async with running_engine(llama) as engine:
        await engine.load_lora(LoraSpec(name="x", path=one.path))
        identity = engine.kv_identity(request)
        await engine.reserve_blocks(request)
        await engine.unload_lora("x")
        await engine.load_lora(LoraSpec(name="x", path=other.path))
        assert engine.kv_identity(request) != identity
        with pytest.raises(TransferError, match="replaced"):
            await answer(engine, request)
        engine.release_blocks(request.request_id)
        assert_all_free(engine)


async def test_an_adapter_that_changes_while_it_is_read_is_refused(
    llama: Path, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks would have the name of weights that it has not."""
    lora = save_adapter(references["llama"], tmp_path / "lora")
    load = LoraLayers.load

    def load_late(self: LoraLayers, path: str) -> LoraWeights:
        weights = load(self, path)
        save_adapter(references["llama"], tmp_path / "lora", seed=2)
        return weights

    async with running_engine(llama) as engine:
        monkeypatch.setattr(LoraLayers, "load", load_late)
        with pytest.raises(InvalidRequest, match="changed while they were read"):
            await engine.load_lora(lora)
        assert engine.loras() == ()


async def test_embeddings_of_an_adapter_are_its_own(
    llama: Path, references: References, tmp_path: Path
) -> None:
    lora = save_adapter(references["llama"], tmp_path / "lora")
    async with running_engine(llama) as engine:
        await engine.load_lora(lora)
        request = EmbedRequest(request_id="e", model="m", prompt=pack_tokens(PROMPTS[1]), lora="lora")
        vector = (await engine.embed(request)).vector
        with pytest.raises(ModelNotFound):
            await engine.embed(
                EmbedRequest(request_id="e", model="m", prompt=pack_tokens(PROMPTS[1]), lora="none")
            )
    with torch.inference_mode():
        states = merged(llama, lora).base_model(torch.tensor([PROMPTS[1]])).last_hidden_state[0]  # type: ignore[operator]
    wanted = torch.nn.functional.normalize(states.mean(0), dim=0)
    assert vector == pytest.approx(wanted.tolist(), abs=1e-5)


def rewrite(adapter: LoraSpec, **config: object) -> None:
    file = Path(adapter.path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def rename(adapter: LoraSpec, old: str, new: str) -> None:
    file = Path(adapter.path) / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)


def transpose(adapter: LoraSpec) -> None:
    file = Path(adapter.path) / "adapter_model.safetensors"
    save_file({name: tensor.T.contiguous() for name, tensor in load_file(file).items()}, file)


def remove(adapter: LoraSpec, name: str) -> None:
    (Path(adapter.path) / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lora: rewrite(lora, use_dora=True), "knows no use_dora: True"),
        (lambda lora: rewrite(lora, peft_type="IA3"), "knows no peft_type: 'IA3'"),
        (lambda lora: rewrite(lora, modules_to_save=["lm_head"]), r"knows no modules_to_save: \['lm_head'\]"),
        (lambda lora: rewrite(lora, r="many"), "no LoRA adapter can be read from"),
        (lambda lora: rename(lora, "q_proj", "z_proj"), r"z_proj' is no linear layer of this model"),
        (lambda lora: rename(lora, "q_proj.lora_A", "q_proj.lora_X"), "is no weight of a LoRA on a linear"),
        (lambda lora: rename(lora, "0.self_attn.q_proj.lora_A", "0.self_attn.q_proj.lora_magnitude"),
         "is no weight of a LoRA"),
        (transpose, r"the layer has 48 inputs and 32 outputs"),
        (lambda lora: remove(lora, "adapter_model.safetensors"), "it needs adapter_config.json and"),
        (lambda lora: remove(lora, "adapter_config.json"), "no LoRA adapter can be read from"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_refused(
    damage: object, said: str, llama: Path, references: References, tmp_path: Path
) -> None:
    lora = save_adapter(references["llama"], tmp_path / "lora")
    assert callable(damage)
    damage(lora)
    async with running_engine(llama) as engine:
        with pytest.raises(InvalidRequest, match=said):
            await engine.load_lora(lora)
        assert engine.loras() == ()
        found = await answer(engine, a_request(PROMPTS[0]))
    assert found.token_ids == greedy_reference(references["llama"], PROMPTS[0], GREEDY.max_tokens)
