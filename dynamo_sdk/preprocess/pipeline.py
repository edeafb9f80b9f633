"""Everything one model needs between text and token ids; built from a folder, shared by all requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from dynamo_sdk.errors import ContextLengthExceeded, InvalidRequest
from dynamo_sdk.types.models import ModelRecord
from dynamo_sdk.types.plan import Json

from .chat_template import ChatTemplate, Message, num_content_chars
from .model_files import read_model_files
from .tokenizer import Tokenizer

OFF_LOOP_MESSAGES = 64
"""Conversations of more messages are rendered on a thread; as many take a tenth of a millisecond."""

_T = TypeVar("_T")


class ModelPipeline:
    """A model's tokenizer and template. Safe to share between tasks and threads."""

    def __init__(
        self, *, name: str, context_length: int, tokenizer: Tokenizer, chat_template: ChatTemplate | None
    ) -> None:
        self.name = name
        self.context_length = context_length
        self.tokenizer = tokenizer
        self._chat_template = chat_template

    @classmethod
    def load(cls, record: ModelRecord) -> ModelPipeline:
        """Read the folder of ``record``. Raises ``ConfigError``. Takes up to seconds: not for the loop."""
        tokenizer = Tokenizer.load(record.path)
        source = read_model_files(Path(record.path)).chat_template
        template = ChatTemplate(source, special_tokens=tokenizer.special_tokens) if source else None
        return cls(
            name=record.name,
            context_length=record.context_length,
            tokenizer=tokenizer,
            chat_template=template,
        )

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Json] | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation. ``variables`` reach the template beside the usual ones.

        Raises ``InvalidRequest`` when the model has no template or it refuses the messages, and
        ``ContextLengthExceeded``.
        """
        template = self._chat_template
        if template is None:
            raise InvalidRequest(
                f"model {self.name!r} has no chat template, so it takes no messages; use /v1/completions",
                param="messages",
            )

        def encode() -> list[int]:
            text = template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)
            return self._encode(text, "messages", add_special_tokens=False)

        num_chars = sum(num_content_chars(message) for message in messages)
        is_long = len(messages) > OFF_LOOP_MESSAGES or num_chars >= self.tokenizer.off_loop_chars
        return await run_off_loop(encode) if is_long else encode()

    async def encode_text(self, text: str, *, param: str, add_special_tokens: bool = True) -> list[int]:
        """Prompt ids of a text. Raises ``ContextLengthExceeded`` for ``param``."""
        encode = partial(self._encode, text, param, add_special_tokens=add_special_tokens)
        return await run_off_loop(encode) if len(text) >= self.tokenizer.off_loop_chars else encode()

    def output_room(self, num_prompt_tokens: int, max_tokens: int | None, *, param: str) -> int:
        """How many tokens may be generated: ``max_tokens``, or all that the context has left.

        Raises ``InvalidRequest`` for an empty prompt and ``ContextLengthExceeded`` when prompt and
        ``max_tokens`` do not fit together.
        """
        if num_prompt_tokens == 0:
            raise InvalidRequest(f"{param} has no tokens; give at least one", param=param)
        room = self.context_length - num_prompt_tokens
        if room < 1 or (max_tokens is not None and max_tokens > room):
            wanted = f" and {max_tokens} of output" if max_tokens is not None else ""
            raise ContextLengthExceeded(
                f"model {self.name!r} has a context of {self.context_length} tokens, but {param} has "
                f"{num_prompt_tokens} tokens{wanted}; allowed are {self.context_length} together, at least "
                "one of them for output",
                param=param,
            )
        return room if max_tokens is None else max_tokens

    def check_fits(self, num_prompt_tokens: int, *, param: str) -> None:
        """As ``output_room``, for a prompt that gets no output."""
        if num_prompt_tokens == 0:
            raise InvalidRequest(f"{param} has no tokens; give at least one", param=param)
        if num_prompt_tokens > self.context_length:
            raise ContextLengthExceeded(
                f"model {self.name!r} has a context of {self.context_length} tokens, but {param} has "
                f"{num_prompt_tokens}",
                param=param,
            )

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        at_least = self.tokenizer.min_num_tokens(text)
        if at_least >= self.context_length:  # spares seconds of tokenizing what cannot fit
            raise ContextLengthExceeded(
                f"model {self.name!r} has a context of {self.context_length} tokens, but {param} has at "
                f"least {at_least}",
                param=param,
            )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


@cache
def _threads() -> Executor:
    return ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="tokenize")


async def run_off_loop(function: Callable[[], _T]) -> _T:
    """Run ``function`` on one of the tokenizing threads; its own errors come back."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), function)
