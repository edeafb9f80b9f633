"""Several models behind one endpoint, and a model folder that nobody prepared for us."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import torch
import transformers

import dynamo_sdk
from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import Frontend, Worker

from .asking import Body, client_of, complete, complete_all, completion
from .graphs import Decode, Prefill, aggregated, graph
from .serving import scrape

DEMO_MODEL = Path(dynamo_sdk.__file__).parent / "demo_model"

TWO_MODELS = """
models:
  expert: {path: demo}
  parrot: {path: demo, router: random}
services:
  Prefill: {model: expert}
  Decode: {model: expert}
  Parrot: {model: parrot, engine: echo, replicas: 2}
"""


@service
class Parrot(Worker): ...


@service
class Both(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)
    parrot = depends(Parrot)


@pytest.mark.anyio
async def test_two_models_from_one_deploy_file(tmp_path: Path) -> None:
    """One is disaggregated on the torch engine, one aggregated on the echo engine."""
    (tmp_path / "two.yaml").write_text(TWO_MODELS)
    question = "What is a KV block?"
    async with Graph(Both).local(tmp_path / "two.yaml") as app, client_of(str(app.url)) as client:

        async def chat(model: str) -> httpx.Response:
            messages = [{"role": "user", "content": question}]
            body = {"model": model, "messages": messages, "temperature": 0}
            return await client.post("/v1/chat/completions", json=body)

        models = (await client.get("/v1/models")).json()["data"]
        assert sorted(model["id"] for model in models) == ["expert", "parrot"]
        expert, parrot = (await chat("expert")).json(), (await chat("parrot")).json()
        assert (expert["model"], parrot["model"]) == ("expert", "parrot")
        assert "block" in expert["choices"][0]["message"]["content"]
        assert question not in expert["choices"][0]["message"]["content"]
        assert question in parrot["choices"][0]["message"]["content"]
        assert (await scrape(client)).by("service", "dynamo_component_kv_transfer_bytes_total")["Decode"] > 0
        stranger = await chat("demo")
        assert stranger.status_code == 404
        assert "'expert', 'parrot'" in stranger.json()["error"]["message"]


@pytest.fixture(scope="module")
def random_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights, large enough for its next tokens to be far apart."""
    folder = tmp_path_factory.mktemp("models") / "random-qwen"
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=1536,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = transformers.Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    for file in DEMO_MODEL.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@torch.inference_mode()
def greedy(folder: Path, prompt: list[int], num_tokens: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
    )
    return [int(token) for token in output[0, len(prompt) :]]


@pytest.mark.anyio
@pytest.mark.parametrize("arrangement", [aggregated, graph], ids=["aggregated", "disaggregated"])
async def test_any_model_folder_answers_as_transformers_does(random_qwen: Path, arrangement: Graph) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(random_qwen)
    prompts = [[300 + (7 * index) % 900 for index in range(length)] for length in (1, 16, 100)]
    bodies: list[Body] = [
        completion(prompt, 20, model="random-qwen", logit_bias={"1": -100}) for prompt in prompts
    ]
    async with arrangement.local(set=[f"model.path={random_qwen}"]) as app:
        assert app.url is not None
        answers = await complete_all(app.url, bodies)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.is_decided
        assert answer.text == tokenizer.decode(greedy(random_qwen, prompt, 20), skip_special_tokens=True)


@pytest.mark.anyio
async def test_a_model_is_named_as_the_deploy_file_says(random_qwen: Path) -> None:
    deploy = {"model": {"path": str(random_qwen), "name": "mine"}}
    async with aggregated.local(deploy) as app, client_of(str(app.url)) as client:
        assert (await complete(client, completion([20], 4, model="mine"))).num_tokens == 4
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["mine"]
