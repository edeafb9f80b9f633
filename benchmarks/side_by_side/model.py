"""A model folder both sides can serve: a tokenizer trained on the standard library's sources, no weights."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 32_000
CONTEXT_LENGTH = 262_144
NUM_TRAINING_CHARS = 8_000_000
BOS, END_OF_TEXT, HEAD, END_OF_HEAD, END_OF_TURN = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SPECIAL = [BOS, END_OF_TEXT, HEAD, END_OF_HEAD, END_OF_TURN]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text before its byte pairs."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{HEAD}{{{{ message.role }}}}{END_OF_HEAD}\n\n{{{{ message.content }}}}{END_OF_TURN}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{HEAD}assistant{END_OF_HEAD}\n\n{{% endif %}}"
)


def training_texts() -> Iterator[str]:
    paths = sorted(Path(os.__file__).parent.rglob("*.py"))
    random.Random(0).shuffle(paths)
    num_chars = 0
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield text
        num_chars += len(text)
        if num_chars > NUM_TRAINING_CHARS:
            return


def trained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def write(folder: Path) -> None:
    """Everything a frontend and a simulated engine read: takes seconds, and is the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = trained_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = [tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(END_OF_TEXT)]
    special = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL
    }
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END_OF_TURN,
            "model_max_length": CONTEXT_LENGTH,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": special,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LENGTH,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": tokenizer.token_to_id(BOS),
            "eos_token_id": ends,
        },
        "generation_config.json": {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": ends},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
