"""From a validated request to the deltas of its choices.

``plan_generation`` turns prompts and fields into one ``GenerateRequest`` per choice; ``Generation.run``
drives them at once and yields what clients may see. Closing the run ends every engine leg.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from random import getrandbits
from uuid import uuid4

from dynamo_sdk.errors import EngineFailed, InvalidRequest
from dynamo_sdk.metrics import ModelMetrics
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.types import GenerateRequest, ModelRecord, pack_tokens

from .backend import Backend, GenerateOptions
from .choice import ChoiceStream, Delta
from .merge import merge
from .protocol import Extensions, SamplingFields
from .validation import num_choices, sampling_params, stop_strings, with_seed_offset


@dataclass(slots=True, kw_only=True)
class Choice:
    """One engine request and its stream; ``index`` as the client counts."""

    index: int
    request: GenerateRequest
    stream: ChoiceStream
    num_cached_tokens: int | None = None  # unknown until the engine says


@dataclass(slots=True, kw_only=True)
class Generation:
    """Everything decided about a request before the first token."""

    id: str
    created_s: int
    received_s: float
    model: str
    prompts: Sequence[Sequence[int]]
    choices: list[Choice]
    pipeline: ModelPipeline

    def run(
        self, backend: Backend, metrics: ModelMetrics, *, deadline_s: float
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """Yield ``(choice index, delta)`` in the order of arrival; the last of each has a finish reason.

        Raises what the backend raises, which also learns ``deadline_s``.
        """
        for prompt in self.prompts:
            metrics.input_tokens.observe(len(prompt))
        streams = [self._run_choice(backend, choice, metrics, deadline_s) for choice in self.choices]
        return merge(streams)

    async def _run_choice(
        self, backend: Backend, choice: Choice, metrics: ModelMetrics, deadline_s: float
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        index, stream = choice.index, choice.stream
        timer = metrics.choice(received_s=self.received_s)
        chunks = backend.generate(choice.request, options=GenerateOptions(deadline_s=deadline_s))
        try:
            async for chunk in chunks:
                timer.on_tokens(len(chunk.token_ids), time.monotonic())
                if chunk.usage is not None:
                    choice.num_cached_tokens = chunk.usage.num_cached_tokens
                delta = stream.push(chunk)
                if delta.finish_reason is not None:
                    await chunks.aclose()  # a stop string ends the engine's work before the answer goes out
                    yield index, delta
                    return
                if delta.text or delta.scored or delta.token_ids:
                    yield index, delta
        finally:
            await chunks.aclose()
            timer.close()
            metrics.output_tokens.observe(stream.num_tokens)
            if choice.num_cached_tokens is not None:
                metrics.cached_tokens.observe(choice.num_cached_tokens)
        raise EngineFailed(f"request {choice.request.request_id} ended without a finish reason")


async def plan_generation(
    *,
    kind: str,
    received_s: float,
    fields: SamplingFields,
    record: ModelRecord,
    pipeline: ModelPipeline,
    prompts: Sequence[Sequence[int]],
    prompt_field: str,
    max_tokens: int | None,
    logprobs: int | None,
    at_start: bool,
    max_choices: int,
) -> Generation:
    """``kind`` prefixes the answer's id. ``at_start``: the text is a message of its own, not a
    continuation. Raises ``InvalidRequest``, ``ContextLengthExceeded``."""
    per_prompt = num_choices(fields)
    if len(prompts) * per_prompt > max_choices:
        raise InvalidRequest(
            f"{len(prompts)} prompts times n = {per_prompt} are {len(prompts) * per_prompt} choices; "
            f"allowed are at most {max_choices}",
            param="n" if per_prompt > 1 else prompt_field,
        )
    stops = stop_strings(fields)
    tokenizer = pipeline.tokenizer
    seed = getrandbits(62)
    extensions = fields.dynamo or Extensions()
    answer_id = uuid4().hex
    choices: list[Choice] = []
    for prompt in prompts:
        room = pipeline.output_room(len(prompt), max_tokens, param=prompt_field)
        params = sampling_params(
            fields, max_tokens=room, logprobs=logprobs, vocab_size=tokenizer.vocab_size, random_seed=seed
        )
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= tokenizer.eos_ids
        packed = pack_tokens(prompt)
        for offset in range(per_prompt):
            index = len(choices)
            detokenizer = tokenizer.detokenizer(
                skip_special_tokens=fields.skip_special_tokens is not False, at_start=at_start, after=prompt
            )
            request = GenerateRequest(
                request_id=f"{answer_id}-{index}",
                model=record.parent or record.name,
                lora=record.name if record.parent else None,
                prompt=packed,
                sampling=with_seed_offset(params, offset),
                cache_salt=extensions.cache_salt,
                priority=extensions.priority,
            )
            stream = ChoiceStream(detokenizer, end_ids=end_ids, stops=stops)
            choices.append(Choice(index=index, request=request, stream=stream))
        if len(choices) % 64 == 0:
            await asyncio.sleep(0)  # many prompts must not hold up other streams
    return Generation(
        id=f"{kind}-{answer_id}",
        created_s=int(time.time()),
        received_s=received_s,
        model=record.name,
        prompts=prompts,
        choices=choices,
        pipeline=pipeline,
    )
