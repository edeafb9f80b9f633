"""A model folder's tokenizer: text to ids, ids to text, and what is known about single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

from dynamo_sdk.errors import ConfigError

from .detokenizer import Detokenizer, TableDetokenizer, WindowDetokenizer
from .encode import Encode, plain_encoder
from .fast_encoder import load_fast_encoder
from .model_files import ModelFiles, read_model_files
from .segment_cache import with_segment_cache
from .token_bytes import LeadingSpace, TokenBytes, read_token_bytes

OFF_LOOP_CHARS = 2048
"""Texts from this length on are better encoded on a thread. As many characters take half a millisecond,
which is what the other streams of the loop would wait; the hop to a thread and back takes 0.04 to 0.08."""

FAST_OFF_LOOP_CHARS = 16_384
"""The same for `fastokens`: as many characters of words it has never met take a millisecond, and of known
words a twentieth of one."""

_NUM_CONTEXT_TOKENS = 6
"""Prompt tokens that a window detokenizer sees to the left of the output."""


class Tokenizer:
    """Immutable after ``load``; ``encode`` may run on any thread and lets go of the interpreter lock."""

    def __init__(
        self,
        hf: HfTokenizer,
        files: ModelFiles,
        token_bytes: TokenBytes | None,
        *,
        encode: Encode,
        off_loop_chars: int,
    ) -> None:
        self._hf = hf
        self._encode = encode
        self.off_loop_chars = off_loop_chars
        self.special_tokens = files.special_tokens
        added = hf.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max(files.vocab_size or 0, hf.get_vocab_size(with_added_tokens=True))
        named_end = files.special_tokens.get("eos_token")
        end_id = hf.token_to_id(named_end) if isinstance(named_end, str) else None
        self.eos_ids = frozenset(files.eos_ids) | ({end_id} if end_id is not None else frozenset())
        self._token_bytes = token_bytes
        self._spelt_out = token_bytes.table if token_bytes else []
        self._without_special = [
            b"" if token_id in self.special_ids else piece for token_id, piece in enumerate(self._spelt_out)
        ]
        shrinks_text = hf.normalizer is not None
        self._max_token_bytes = 0 if shrinks_text else max(map(len, self._spelt_out), default=0)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and what lies beside it. Raises ``ConfigError``. Takes up to seconds."""
        path = Path(folder) / "tokenizer.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the model folder {folder} has no readable tokenizer.json "
                f"({error.strerror}); save the model with its fast tokenizer: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            ) from error
        try:
            hf = HfTokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{path} is no tokenizer that `tokenizers` can read: {error}") from error
        hf.no_truncation()
        hf.no_padding()
        plain = plain_encoder(hf)
        fast = load_fast_encoder(content, plain)
        return cls(
            hf,
            read_model_files(Path(folder)),
            read_token_bytes(content, hf),
            encode=fast or with_segment_cache(plain, content, hf.token_to_id),
            off_loop_chars=FAST_OFF_LOOP_CHARS if fast else OFF_LOOP_CHARS,
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of ``text``; special tokens written in the text become their ids."""
        return self._encode(text, add_special_tokens=add_special_tokens)

    def min_num_tokens(self, text: str) -> int:
        """A lower bound of how many ids ``text`` has, without tokenizing it; 0 = nothing is known."""
        return len(text) // self._max_token_bytes if self._max_token_bytes else 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._hf.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text; a special token is spelt out, an unknown id is empty."""
        if self._token_bytes is None:
            token = self._hf.id_to_token(token_id)
            if token is None or token_id in self.special_ids:
                return (token or "").encode()
            return self.decode([token_id]).encode()
        return self._spelt_out[token_id] if 0 <= token_id < len(self._spelt_out) else b""

    def detokenizer(
        self, *, skip_special_tokens: bool = True, at_start: bool = True, after: Sequence[int] = ()
    ) -> Detokenizer:
        """A new stream. ``at_start``: a message of its own; otherwise it continues the prompt ``after``."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        if self._token_bytes is None:
            context = () if at_start else after[-_NUM_CONTEXT_TOKENS:]
            return WindowDetokenizer(self._decode_all, skip=skip, after=context)
        table = self._without_special if skip_special_tokens else self._spelt_out
        return TableDetokenizer(
            table, leading=self._token_bytes.leading_space if at_start else LeadingSpace.KEEP
        )

    def _decode_all(self, token_ids: list[int]) -> str:
        return self.decode(token_ids, skip_special_tokens=False)


def printable(piece: bytes) -> str:
    """A token's bytes as a string; bytes that are no whole character are written as ``\\xe2``."""
    return piece.decode("utf-8", "backslashreplace")
