"""From a validated request to the deltas of its choices.

``plan_generation`` turns prompts and fields into one ``GenerateRequest`` per choice; ``Generation.run``
drives them at once and collects what clients may see. Closing its inbox ends every engine leg.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import getrandbits
from typing import Self

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.metrics import ModelMetrics
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.types import GenerateChunk, GenerateRequest, LegTiming, ModelRecord, pack_tokens

from .backend import Backend, BackendCall, ChunkSink, GenerateOptions, RoutingHints
from .choice import ChoiceStream
from .inbox import DeltaInbox
from .ledger import Ledger, settle
from .protocol import Extensions, SamplingFields
from .validation import num_choices, sampling_params, stop_strings, with_seed_offset

SESSION_HEADER = b"x-dynamo-session-id"
TENANT_HEADER = b"x-tenant-id"


@dataclass(slots=True, kw_only=True)
class Choice:
    """One engine request and its stream; ``index`` as the client counts."""

    index: int
    request: GenerateRequest
    stream: ChoiceStream
    num_cached_tokens: int | None = None  # unknown until the engine says
    route_s: float = 0.0
    ledger: Ledger | None = None  # once it has ended


@dataclass(slots=True, kw_only=True)
class Generation:
    """Everything decided about a request before the first token."""

    id: str
    created_s: int
    received_s: float
    tokenize_s: float
    model: str
    wants_ledger: bool
    hints: RoutingHints
    prompts: Sequence[Sequence[int]]
    choices: list[Choice]
    pipeline: ModelPipeline

    def run(self, backend: Backend, metrics: ModelMetrics, *, deadline_s: float) -> DeltaInbox:
        """Start every choice. The inbox gets what backend and engine give; close it, whatever happens."""
        for prompt in self.prompts:
            metrics.input_tokens.observe(len(prompt))
        inbox = DeltaInbox()
        options = GenerateOptions(deadline_s=deadline_s, hints=self.hints)
        try:
            for choice in self.choices:
                run = _ChoiceRun(self, choice, inbox, metrics)
                inbox.calls.append(run.start(backend, options))
        except BaseException:
            inbox.close()
            raise
        return inbox

    @property
    def ledger(self) -> Ledger | None:
        """Of the choice that took the longest."""
        ended = [choice.ledger for choice in self.choices if choice.ledger is not None]
        return max(ended, key=lambda ledger: ledger.total_us, default=None)

    @property
    def has_extras(self) -> bool:
        """Something was asked for beside the text."""
        return self.wants_ledger or self.hints.explanations is not None

    def first_stages_us(self) -> tuple[int, int]:
        """What is known of the ledger when a stream begins: ``tokenize`` and ``route``."""
        route_s = max([choice.route_s for choice in self.choices])
        return round(self.tokenize_s * 1e6), round(route_s * 1e6)


class _ChoiceRun(ChunkSink):
    """One choice under way: chunks come in, deltas go to the inbox."""

    def __init__(
        self, generation: Generation, choice: Choice, inbox: DeltaInbox, metrics: ModelMetrics
    ) -> None:
        self._generation = generation
        self._choice = choice
        self._inbox = inbox
        self._timer = metrics.choice(received_s=generation.received_s)
        self._metrics = metrics
        self._call: BackendCall | None = None
        self._is_closed = False

    def start(self, backend: Backend, options: GenerateOptions) -> Self:
        started_s = time.monotonic()
        try:
            self._call = backend.generate(self._choice.request, self, options=options)
        except BaseException:
            self.close()
            raise
        self._choice.route_s = time.monotonic() - started_s
        return self

    def on_chunk(self, chunk: GenerateChunk) -> None:
        now_s = time.monotonic()
        self._timer.on_tokens(len(chunk.token_ids), now_s)
        if chunk.usage is not None:
            self._choice.num_cached_tokens = chunk.usage.num_cached_tokens
        delta = self._choice.stream.push(chunk)
        if delta.finish_reason is not None:
            self.close()  # a stop string ends the engine's work before the answer goes out
            self._settle(chunk.timing or LegTiming(), now_s)
        elif not (delta.text or delta.scored or delta.token_ids):
            return
        self._inbox.put(self._choice.index, delta)

    def on_error(self, error: Exception) -> None:
        self.close()
        self._inbox.fail(error)

    def pause(self) -> None:
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        if self._call is not None:
            self._call.resume()

    def _settle(self, legs: LegTiming, now_s: float) -> None:
        generation = self._generation
        ledger = self._choice.ledger = settle(
            total_s=now_s - generation.received_s,
            tokenize_s=generation.tokenize_s,
            route_s=self._choice.route_s,
            legs=legs,
        )
        for stage_s, stage_us in zip(self._metrics.stages_s, ledger.stages_us(), strict=True):
            stage_s.observe(stage_us / 1e6)

    def close(self) -> None:
        """Free what the choice holds and count it. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._timer.close()
        self._metrics.output_tokens.observe(self._choice.stream.num_tokens)
        if self._choice.num_cached_tokens is not None:
            self._metrics.cached_tokens.observe(self._choice.num_cached_tokens)


async def plan_generation(
    *,
    kind: str,
    received_s: float,
    tokenize_s: float,
    fields: SamplingFields,
    record: ModelRecord,
    pipeline: ModelPipeline,
    prompts: Sequence[Sequence[int]],
    prompt_field: str,
    max_tokens: int | None,
    logprobs: int | None,
    at_start: bool,
    max_choices: int,
    headers: Mapping[bytes, bytes],
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
    answer_id = f"{getrandbits(128):032x}"
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
        tokenize_s=tokenize_s,
        wants_ledger=extensions.ledger,
        hints=_hints(extensions, headers),
        model=record.name,
        prompts=prompts,
        choices=choices,
        pipeline=pipeline,
    )


def _hints(extensions: Extensions, headers: Mapping[bytes, bytes]) -> RoutingHints:
    """A gateway in front may say by header whose request it is; what the body says counts more."""
    session, tenant = headers.get(SESSION_HEADER), headers.get(TENANT_HEADER)
    return RoutingHints(
        session=extensions.session or (session.decode("latin-1") if session else None),
        tenant=extensions.tenant or (tenant.decode("latin-1") if tenant else None),
        worker=extensions.worker,
        explanations=[] if extensions.explain else None,
    )
