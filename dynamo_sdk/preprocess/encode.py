"""What an encoder is, and the one that every model folder has: ``tokenizers``."""

from __future__ import annotations

from typing import Protocol

from tokenizers import Tokenizer as HfTokenizer


class Encode(Protocol):
    """Text to ids. Special tokens written in the text become their ids; may run on any thread."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def plain_encoder(hf: HfTokenizer) -> Encode:
    """Lets go of the interpreter lock while it works."""

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        # The batch call skips character offsets, a quarter of the time, and holds the lock the least.
        ids: list[int] = hf.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    return encode
