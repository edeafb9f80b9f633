"""Ranges, and what fits together: from a decoded request to ``SamplingParams``.

Every refusal names the field, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.types import SamplingParams

from .errors import NotSupportedYet
from .protocol import ChatRequest, CompletionRequest, SamplingFields

MAX_CHOICES_PER_PROMPT = 128
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1000
MAX_STOP_TOKENS = 256
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
_SEED_RANGE = 2**63


def in_range(
    field: str, value: float | None, low: float, high: float, *, default: float, is_low_open: bool = False
) -> float:
    """``value``, or ``default`` for None; raises ``InvalidRequest`` outside ``low .. high``."""
    if value is None:
        return default
    if not (low < value if is_low_open else low <= value) or value > high:
        above = "more than " if is_low_open else ""
        raise InvalidRequest(
            f"{field} is {_shown(value)}; allowed are {above}{low:g} to {high:g}", param=field
        )
    return value


def int_in_range(field: str, value: int | None, low: int, high: int, *, default: int) -> int:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{field} is {_shown(value)}; allowed are {low} to {high}", param=field)
    return default if value is None else value


def token_ids_in_vocabulary(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(
            f"{field} has the token id {_shown(wrong)}; allowed are 0 to {vocab_size - 1}", param=field
        )


def sampling_params(
    fields: SamplingFields, *, max_tokens: int, logprobs: int | None, vocab_size: int, random_seed: int
) -> SamplingParams:
    """``max_tokens`` and ``logprobs`` are settled by the caller; ``random_seed`` is used where the client
    gave none. Raises ``InvalidRequest``."""
    top_p = in_range("top_p", fields.top_p, 0, 1, default=1.0)
    top_k = int_in_range("top_k", fields.top_k, -1, 2**31 - 1, default=0)
    seed = int_in_range("seed", fields.seed, -_SEED_RANGE, _SEED_RANGE - 1, default=random_seed)
    stop_token_ids = fields.stop_token_ids or []
    if len(stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"stop_token_ids has {len(stop_token_ids)} entries; allowed are at most {MAX_STOP_TOKENS}",
            param="stop_token_ids",
        )
    token_ids_in_vocabulary("stop_token_ids", stop_token_ids, vocab_size)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=int_in_range("min_tokens", fields.min_tokens, 0, max_tokens, default=0),
        temperature=in_range("temperature", fields.temperature, 0, 2, default=1.0),
        # Nothing but the most likely token is left as top_p goes to 0.
        top_k=1 if top_p == 0 else max(0, top_k),
        top_p=top_p if top_p > 0 else 1.0,
        min_p=in_range("min_p", fields.min_p, 0, 1, default=0.0),
        presence_penalty=in_range("presence_penalty", fields.presence_penalty, -2, 2, default=0.0),
        frequency_penalty=in_range("frequency_penalty", fields.frequency_penalty, -2, 2, default=0.0),
        repetition_penalty=in_range(
            "repetition_penalty", fields.repetition_penalty, 0, 10, default=1.0, is_low_open=True
        ),
        seed=seed % _SEED_RANGE,
        logit_bias=_logit_bias(fields, vocab_size),
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
    )


def with_seed_offset(params: SamplingParams, offset: int) -> SamplingParams:
    """The parameters of the choice that is ``offset`` after the first."""
    if offset == 0:
        return params
    values = {name: getattr(params, name) for name in params.__struct_fields__}
    return SamplingParams(**{**values, "seed": (params.seed + offset) % _SEED_RANGE})


def num_choices(fields: SamplingFields) -> int:
    return int_in_range("n", fields.n, 1, MAX_CHOICES_PER_PROMPT, default=1)


def stop_strings(fields: SamplingFields) -> tuple[str, ...]:
    stops = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    if len(stops) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop has {len(stops)} entries; allowed are at most {MAX_STOP_STRINGS}", param="stop"
        )
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidRequest(
                f"stop has an entry of {len(stop)} characters; allowed are 1 to {MAX_STOP_CHARS}",
                param="stop",
            )
    return stops


def wants_usage_chunk(fields: SamplingFields) -> bool:
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest(
            "stream_options is set; it is allowed only with stream: true", param="stream_options"
        )
    return bool(fields.stream_options and fields.stream_options.include_usage)


def chat_logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest(
            f"top_logprobs is {_shown(request.top_logprobs)}; it is allowed only with logprobs: true",
            param="top_logprobs",
        )
    top = int_in_range("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS, default=0)
    return top if request.logprobs else None


def completion_logprobs(request: CompletionRequest) -> int | None:
    if request.logprobs is None:
        return None
    if request.echo:
        raise NotSupportedYet(
            "echo together with logprobs needs logprobs of the prompt, which are not supported yet; "
            "ask for one of the two",
            param="logprobs",
        )
    return int_in_range("logprobs", request.logprobs, 0, MAX_LOGPROBS, default=0)


def refuse_unsupported(request: ChatRequest | CompletionRequest) -> None:
    """Raises ``NotSupportedYet`` for the first field that asks for what is not there."""
    for field, neutral in _NEUTRAL.items():
        value = getattr(request, field, None)
        if value is not None and value not in neutral:
            allowed = " or ".join(["null", *(_shown(entry) for entry in neutral)])
            raise NotSupportedYet(f"{field} is not supported yet; allowed is {allowed}", param=field)
    choice = request.response_format
    if choice is not None and choice.type != "text":
        raise NotSupportedYet(
            f"response_format.type is {_shown(choice.type)}, which is not supported yet; allowed is 'text'",
            param="response_format",
        )
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise NotSupportedYet(
            f"best_of is {_shown(request.best_of)}; other values than n are not supported yet",
            param="best_of",
        )


_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "continue_final_message": (False,),
    "chat_template": (),
    "suffix": ("",),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
"""Fields that are not supported, and the values with which they ask for nothing."""


def _logit_bias(fields: SamplingFields, vocab_size: int) -> dict[int, float]:
    given = fields.logit_bias or {}
    if len(given) > MAX_LOGIT_BIASES:
        raise InvalidRequest(
            f"logit_bias has {len(given)} entries; allowed are at most {MAX_LOGIT_BIASES}", param="logit_bias"
        )
    biases: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise InvalidRequest(
                f"logit_bias has the key {_shown(key)}; allowed are token ids, 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        biases[int(key)] = in_range(f"logit_bias[{key}]", bias, -100, 100, default=0.0)
    return biases


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
