"""Request bodies for chat completions, no two alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

NUM_TEMPLATE_TOKENS = 10
"""What the chat template of ``model.py`` adds around the one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyKind:
    num_prompt_tokens: int
    num_output_tokens: int
    stream: bool


class BodyWriter:
    """Texts are runs of words of one token each; which words, a seed says, and no seed is used twice."""

    def __init__(self, tokenizer: Tokenizer, *, model: str, seed: int = 0) -> None:
        self._model = model
        self._seed = seed
        decoded = (tokenizer.decode([token]) for token in range(300, min(20_000, tokenizer.get_vocab_size())))
        words = [word for word in decoded if word.startswith(" ") and word[1:].isalpha() and len(word) > 2]
        self._words = [word for word in words if len(tokenizer.encode(word).ids) == 1][:6000]
        if len(self._words) < 1000:
            raise ValueError(f"the tokenizer has only {len(self._words)} plain words of one token")

    def bodies(self, kind: BodyKind, count: int) -> Iterator[str]:
        self._seed += 1
        rng = random.Random(self._seed)
        num_words = max(1, kind.num_prompt_tokens - NUM_TEMPLATE_TOKENS)
        for _ in range(count):
            body = {
                "model": self._model,
                "max_tokens": kind.num_output_tokens,
                "stream": kind.stream,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": "".join(rng.choices(self._words, k=num_words))}],
            }
            yield json.dumps(body)

    def write(self, kind: BodyKind, count: int, path: Path) -> None:
        with path.open("w") as file:
            file.writelines(f"{body}\n" for body in self.bodies(kind, count))
