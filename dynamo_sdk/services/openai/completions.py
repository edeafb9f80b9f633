"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.preprocess import ModelPipeline

from .answer import Extras, Finished, Format, UsageBody
from .choice import Delta
from .generation import Generation
from .logprobs import CompletionLogprobs, completion_logprobs
from .protocol import CompletionRequest
from .sse import encode_json
from .validation import token_ids_in_vocabulary

_OBJECT = "text_completion"

Prompt = str | list[int]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = _OBJECT
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[CompletionChoice]
    usage: UsageBody
    dynamo: Extras | msgspec.UnsetType = msgspec.UNSET


class CompletionFormat(Format):
    """``echoes``: per prompt, the text that goes before the answer; empty without ``echo``."""

    def __init__(
        self, request: CompletionRequest, generation: Generation, echoes: Sequence[str], *, shows_usage: bool
    ) -> None:
        super().__init__(
            generation,
            object=_OBJECT,
            lead=b'"text":',
            close=b"",
            is_streamed=bool(request.stream),
            has_logprobs=request.logprobs is not None,
            has_token_ids=bool(request.return_token_ids),
            shows_usage=shows_usage,
        )
        per_prompt = len(generation.choices) // len(generation.prompts)
        self._echoes = [echoes[choice.index // per_prompt] if echoes else "" for choice in generation.choices]
        self._per_prompt = per_prompt

    def opening(self) -> bytes:
        return b"".join(
            chunk.text(echo) for chunk, echo in zip(self._chunks, self._echoes, strict=True) if echo
        )

    def whole(self, choices: Sequence[Finished], usage: UsageBody) -> bytes:
        generation = self._generation
        answer = Completion(
            id=generation.id,
            created=generation.created_s,
            model=generation.model,
            choices=[
                CompletionChoice(
                    index=index,
                    text=self._echoes[index] + choice.text,
                    logprobs=self.logprobs(choice, index) if self._has_logprobs else None,
                    finish_reason=choice.finish_reason,
                    token_ids=choice.token_ids if self._has_token_ids else msgspec.UNSET,
                    prompt_token_ids=(
                        generation.prompts[index // self._per_prompt]
                        if self._has_token_ids
                        else msgspec.UNSET
                    ),
                )
                for index, choice in enumerate(choices)
            ],
            usage=usage,
            dynamo=self.extras(),
        )
        return encode_json(answer)

    def logprobs(self, part: Delta | Finished, index: int) -> CompletionLogprobs:
        tokenizer = self._generation.pipeline.tokenizer
        return completion_logprobs(tokenizer, part.scored, offset=len(self._echoes[index]))


def split_prompts(given: str | list[str | int | list[int]], *, param: str, max_prompts: int) -> list[Prompt]:
    """OpenAI's four shapes: a text, token ids, a list of texts, a list of token id lists."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest(f"{param} is []; allowed is a text, token ids, or a list of either", param=param)
    ids = [entry for entry in given if isinstance(entry, int)]
    if len(ids) == len(given):
        return [ids]
    if ids:
        raise InvalidRequest(
            f"{param} mixes token ids with other entries; allowed is a text, token ids, or a list of either",
            param=param,
        )
    prompts: list[Prompt] = [entry for entry in given if not isinstance(entry, int)]
    if len(prompts) > max_prompts:
        raise InvalidRequest(
            f"{param} has {len(prompts)} entries; allowed are at most {max_prompts}", param=param
        )
    return prompts


async def prompt_ids(
    pipeline: ModelPipeline, prompts: Sequence[Prompt], *, param: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each prompt. Raises ``InvalidRequest``, ``ContextLengthExceeded``."""
    encoded: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        where = param if len(prompts) == 1 else f"{param}[{index}]"
        if isinstance(prompt, str):
            ids = await pipeline.encode_text(prompt, param=where, add_special_tokens=add_special_tokens)
        else:
            ids = prompt
            token_ids_in_vocabulary(where, ids, pipeline.tokenizer.vocab_size)
        encoded.append(ids)
    return encoded
