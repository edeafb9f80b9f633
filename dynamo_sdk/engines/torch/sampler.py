"""Which token comes next: a pure function of (logits, sampling parameters, seed, position).

Nothing here keeps state between steps, and no row sees another row of its batch, so a request draws the
same tokens alone or among others, on this worker or on the next.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynamo_sdk.types import SamplingParams, TokenLogprobs

_PROBE = 256  # most nuclei fit into this many of the likeliest tokens; sorting the vocabulary is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """One row of logits. ``output``: all tokens after the prompt, whoever generated them; the next one
    has the position ``len(output)``. ``end_ids`` would end the request, and are kept back while it is
    shorter than ``min_tokens``."""

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    end_ids: Sequence[int] = ()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position), the same on every machine."""
    key = struct.pack("<QQ", seed & 0xFFFF_FFFF_FFFF_FFFF, position)
    bits = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return (bits >> 11) * 2.0**-53


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Choose one token for each row of ``logits`` (``[rows, vocabulary]``, float32; may be changed)."""
    with_logprobs = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[with_logprobs] if with_logprobs else None  # a copy: what follows edits in place
    for index, row in enumerate(rows):
        edit_logits(logits[index], row)
    token_ids: list[int] = logits.argmax(dim=-1).tolist()
    random = [index for index, row in enumerate(rows) if row.params.temperature > 0.0]
    if random:
        drawn = draw(logits if len(random) == len(rows) else logits[random], [rows[i] for i in random])
        for index, token_id in zip(random, drawn, strict=True):
            token_ids[index] = token_id
    logprobs: list[TokenLogprobs | None] = [None] * len(rows)
    if raw is not None:
        chosen = [token_ids[index] for index in with_logprobs]
        counts = [rows[index].params.logprobs or 0 for index in with_logprobs]
        for index, found in zip(with_logprobs, token_logprobs(raw, chosen, counts), strict=True):
            logprobs[index] = found
    return token_ids, logprobs


def edit_logits(logits: torch.Tensor, row: SamplingRow) -> None:
    """Apply penalties, bias and ``min_tokens`` to one row, in place, in this order."""
    params, device = row.params, logits.device
    if params.repetition_penalty != 1.0 and (row.prompt or row.output):
        seen = torch.tensor([*row.prompt, *row.output], device=device)
        score = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(score > 0, score / penalty, score * penalty)
    if row.output and (params.presence_penalty or params.frequency_penalty):
        seen, count = torch.unique(torch.tensor(row.output, device=device), return_counts=True)
        logits[seen] -= params.presence_penalty + params.frequency_penalty * count
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=device)
        logits[biased] += torch.tensor(list(params.logit_bias.values()), device=device)
    if len(row.output) < params.min_tokens:
        ends = [token_id for token_id in row.end_ids if 0 <= token_id < logits.shape[-1]]
        if ends:
            logits[torch.tensor(ends, device=device)] = -torch.inf


def draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw from each row's truncated distribution by inverting its cumulative sum in vocabulary order."""
    params = [row.params for row in rows]
    device = logits.device
    temperature = torch.tensor([p.temperature for p in params], device=device)
    scaled = logits / temperature[:, None]
    if any(p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0 for p in params):
        scaled = scaled.masked_fill(scaled < cut(scaled, params)[:, None], -torch.inf)
    cumulative = scaled.double().softmax(dim=-1).cumsum(dim=-1)
    points = torch.tensor(
        [uniform(row.params.seed, len(row.output)) for row in rows], dtype=torch.float64, device=device
    )
    # `right`: the first token whose cumulative sum exceeds the point, hence never one of probability 0.
    targets = points[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    token_ids: list[int] = found.clamp_(max=logits.shape[-1] - 1).tolist()  # NaN would be past the end
    return token_ids


def cut(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Per row, the smallest logit that stays: the highest of what top-k, top-p (of what top-k leaves) and
    min-p ask for. Tokens that tie with it stay too, so the outcome does not depend on a sort's order."""
    vocab_size = scaled.shape[-1]
    top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
    has_top_p = any(p.top_p < 1.0 for p in params)
    limited = [k for k in top_k if k < vocab_size]
    num_sorted = min(vocab_size, max([*limited, _PROBE if has_top_p else 1]))
    while True:
        best = scaled.topk(num_sorted, dim=-1).values.double()
        k = torch.tensor(top_k, device=scaled.device)[:, None]
        rank = torch.arange(num_sorted, device=scaled.device)
        highest = best[:, :1]
        weight = (best - highest).exp().masked_fill(rank >= k, 0.0)
        everything = (scaled.double() - highest).exp().sum(-1, keepdim=True)
        total = torch.where(k < vocab_size, weight.sum(-1, keepdim=True), everything)
        before = weight.cumsum(-1) - weight
        top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=scaled.device)[:, None]
        stays = (rank < k) & ((before < top_p * total) | (top_p >= 1.0) | (rank == 0))
        num_staying = stays.sum(-1, keepdim=True)
        is_open = (num_staying == num_sorted) & (top_p < 1.0) & (k > num_sorted)
        if num_sorted == vocab_size or not bool(is_open.any()):
            break
        num_sorted = vocab_size
    threshold = best.gather(-1, num_staying - 1)
    is_cut = (k < vocab_size) | (top_p < 1.0)
    threshold = threshold.masked_fill(~is_cut, -torch.inf)
    min_p = torch.tensor([p.min_p for p in params], dtype=torch.float64, device=scaled.device)[:, None]
    threshold = torch.maximum(threshold, highest + min_p.log())
    return threshold[:, 0].to(scaled.dtype)


def token_logprobs(logits: torch.Tensor, chosen: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Of each row's chosen token and its ``counts[row]`` likeliest, from the log-softmax of ``logits``."""
    logprobs = logits.log_softmax(dim=-1)
    picked = logprobs.gather(-1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0].tolist()
    most = min(max(counts), logits.shape[-1])
    if most == 0:
        return [TokenLogprobs(logprob) for logprob in picked]
    values, ids = logprobs.topk(most, dim=-1)
    return [
        TokenLogprobs(logprob, tuple(zip(row_ids[:count], row_values[:count], strict=True)))
        for logprob, row_ids, row_values, count in zip(
            picked, ids.tolist(), values.tolist(), counts, strict=True
        )
    ]
