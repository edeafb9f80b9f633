"""Trains the demo model, a tiny Llama and its tokenizer, from questions.md on one CPU thread.

    python examples/demo_model/train.py                  # writes dynamo_sdk/demo_model
    python examples/demo_model/train.py --out /tmp/demo  # writes elsewhere

Every batch is drawn afresh from `questions.md` (see `conversations.py`). A row is one conversation,
with or without a system prompt, of one turn or of many, in the very tokens that the chat template
gives; only answers are learned. At the end the script measures exact recall, of trained phrasings
and of held-out ones. Needs torch, transformers and tokenizers. On one machine, one seed gives the
same bytes each time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from conversations import ASSISTANT, BEGIN, END, NOT_LEARNED, SPECIAL, USER, Sampler, Source, read_source
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
CONTEXT_LENGTH = 2048
VOCAB_SIZE = 1536
CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' or message.role == 'developer' -%}{{- '<|system|>' -}}
{%- elif message.role == 'user' -%}{{- '<|user|>' -}}
{%- elif message.role == 'assistant' -%}{{- '<|assistant|>' -}}
{%- else -%}{{- raise_exception('the demo model knows no role ' ~ message.role) -}}
{%- endif -%}
{%- if message.content is string -%}{{- message.content | trim -}}
{%- elif message.content -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
SAMPLES = [
    "Hello!",
    "what is a kv block",
    "How do I run a graph?",
    "Could you explain how the router chooses a worker?",
    "Say something with an emoji",
    "Say hello in Japanese",
    "What is the capital of Peru?",
]


def train_tokenizer(source: Source, out: Path) -> None:
    """Writes a byte-level BPE tokenizer: any UTF-8 text survives encoding and decoding."""
    turns = [turn for block in source.blocks for turn in block.turns]
    corpus = [turn.answer for turn in turns for _ in range(3)]
    corpus += [question for turn in turns for question in turn.trained]
    corpus += source.system_prompts + [f"My name is {name}. {name}." for name in source.names]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=4,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": SPECIAL[2:],
        "added_tokens_decoder": {
            str(i): {"content": text, "special": True, **flags} for i, text in enumerate(SPECIAL)
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def new_model() -> LlamaForCausalLM:
    """A Llama with random weights; all its sizes can be split in two for tensor parallelism."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(END),
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, sampler: Sampler, num_steps: int, batch_tokens: int) -> None:
    """AdamW with a warm-up and a cosine; products in bfloat16, weights in float32."""
    peak_lr = 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.1)
    start_s = time.monotonic()
    model.train()
    for step in range(num_steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
        optimizer.param_groups[0]["lr"] = peak_lr * min(1.0, (step + 1) / 100) * (0.01 + cosine)
        [length] = sampler.rng.choices([64, 128, 384, 1024, 2048], [0.48, 0.15, 0.3, 0.03, 0.04])
        rows = [sampler.row(length) for _ in range(batch_tokens // length)]
        ids = torch.tensor([row[0] for row in rows])
        targets = torch.tensor([row[1] for row in rows])[:, 1:]
        is_learned = targets != NOT_LEARNED
        model.set_attn_implementation("eager" if length < 1000 else "sdpa")  # the faster one
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[is_learned])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[is_learned])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == num_steps - 1:
            passed_s = time.monotonic() - start_s
            print(f"step {step:5d}  loss {loss.item():.4f}  {passed_s:4.0f} s", flush=True)


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Writes weights and configs, with the older names of two settings beside the newer ones."""
    model.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text()) | {"rope_theta": 10000.0, "torch_dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id")}
    ids["pad_token_id"] = model.config.pad_token_id
    (out / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    for file in out.iterdir():
        file.chmod(0o644)


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, pairs: list[tuple[list[int], list[int]]]) -> list[bool]:
    """Whether greedy decoding after each prompt gives exactly the answer, its end included.

    Greedy decoding gives an answer if and only if each token of it is the most probable one after
    all tokens before it; so one forward pass over prompt plus answer is enough.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    is_match = [False] * len(pairs)
    for part in (order[i : i + 32] for i in range(0, len(order), 32)):
        rows = [pairs[i][0] + pairs[i][1] for i in part]
        width = max(map(len, rows))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        for i, best in zip(part, model(padded).logits.argmax(-1).tolist(), strict=True):
            start = len(pairs[i][0]) - 1
            is_match[i] = best[start : start + len(pairs[i][1])] == pairs[i][1]
    return is_match


def evaluate(model: LlamaForCausalLM, sampler: Sampler) -> None:
    """Prints exact match of trained and of held-out phrasings, in three settings (the last: a fifth)."""
    model.eval().set_attn_implementation("sdpa")
    for kind in ("trained", "held_out"):
        for setting in ("as written", "lower case, no mark", "later turn, long system prompt"):
            pairs, questions = [], []
            for block in sampler.source.blocks:
                text = BEGIN
                if setting.startswith("later") and not block.is_first_only:
                    text += sampler.system(max_tokens=400)
                    text += "".join(f"{USER}{q}{END}{ASSISTANT}{a}{END}" for q, a in sampler.block(False))
                for turn in block.turns:
                    answer = turn.answer.replace("{name}", "Grace")
                    for question in getattr(turn, kind)[:: 5 if setting.startswith("later") else 1]:
                        if setting.startswith("lower"):
                            question = question.lower().rstrip("?.!")
                        question = question.replace("{name}", "Grace")
                        prompt = sampler.encode(f"{text}{USER}{question}{END}{ASSISTANT}")
                        pairs.append((prompt, sampler.encode(answer + END)))
                        questions.append(question)
                    first = turn.trained[0].replace("{name}", "Grace")
                    text += f"{USER}{first}{END}{ASSISTANT}{answer}{END}"
            matches = exact_match(model, pairs)
            share = sum(matches) / len(matches)
            print(f"exact match, {kind}, {setting}: {sum(matches)}/{len(matches)} = {share:.1%}")
            if setting == "as written":
                missed = [q for q, hit in zip(questions, matches, strict=True) if not hit]
                print("  missed:", "; ".join(missed[:60]))


def show_samples(folder: Path) -> None:
    """Answers a few questions with the saved files, as a user would load them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in SAMPLES:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=200)[0]
        answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"> {question}\n  {answer}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo model.")
    default_out = HERE.parent.parent / "dynamo_sdk" / "demo_model"
    parser.add_argument("--out", type=Path, default=default_out, help="folder to write")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    source = read_source(HERE / "questions.md")
    train_tokenizer(source, args.out)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    sampler, model = Sampler(source, tokenizer, args.seed), new_model()
    num_params = sum(weight.numel() for weight in model.parameters())
    print(f"{num_params} parameters, {len(source.blocks)} blocks of questions")
    train(model, sampler, args.steps, args.batch_tokens)
    save_model(model, args.out)
    evaluate(model, sampler)
    show_samples(args.out)


if __name__ == "__main__":
    main()
