"""Attention over the paged cache, in the place of the model's own.

``transformers`` looks attention functions up by name and hands them the caller's keyword arguments; ours
is ``paged_attention`` and gets the step's ``PagedBatch``. All sequences of a step lie one after another
in a single row of tokens: first those that bring one token (decodes), then the prompt chunks.

Per layer: write the new keys and values into their slots, then attend. Decodes attend in a few padded
batches of similar length; a chunk attends alone, over what is cached and over itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from .cache import PagedKVCache

ATTENTION_NAME = "dynamo_sdk_paged"
_HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"}


@dataclass(slots=True, kw_only=True)
class DecodeGroup:
    """Single-token sequences, padded to one length. ``rows``: block rows ``[2, size, kv_heads, blocks]``,
    flat. ``lengths``: ``[size]``, tokens each may see, itself included."""

    first_token: int
    size: int
    num_tokens: int  # padded length, a multiple of the block size
    rows: torch.Tensor
    lengths: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """``[size, 1, 1, num_tokens]``, true where a token may be seen; one per window and step."""
        mask = self.masks.get(window)
        if mask is None:
            positions = torch.arange(self.num_tokens, device=self.lengths.device)
            lengths = self.lengths[:, None]
            mask = positions < lengths
            if window is not None:
                mask &= positions >= lengths - window
            mask = self.masks[window] = mask[:, None, None, :]
        return mask


@dataclass(slots=True, kw_only=True)
class PromptChunk:
    """``num_new`` tokens of one sequence, after ``num_before`` cached ones. ``rows``: block rows
    ``[2, kv_heads, blocks]``, flat."""

    first_token: int
    num_new: int
    num_before: int
    rows: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """``[num_new, num_before + num_new]``, true where a token may be seen."""
        mask = self.masks.get(window)
        if mask is None:
            mask = causal_mask(self.num_before, self.num_new, window, self.rows.device)
            self.masks[window] = mask
        return mask


@dataclass(slots=True, kw_only=True)
class PagedBatch:
    """One step, as attention sees it. ``key_rows`` and ``value_rows``: token rows ``[tokens, kv_heads]``,
    flat; where each new token is stored."""

    cache: PagedKVCache
    key_rows: torch.Tensor
    value_rows: torch.Tensor
    decodes: list[DecodeGroup]
    chunks: list[PromptChunk]
    num_layers_done: int = 0


def causal_mask(num_before: int, num_new: int, window: int | None, device: torch.device) -> torch.Tensor:
    seen = torch.arange(num_before + num_new, device=device)
    seeing = torch.arange(num_before, num_before + num_new, device=device)[:, None]
    mask = seen <= seeing
    if window is not None:
        mask &= seen > seeing - window
    return mask


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged_batch: PagedBatch | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """``query`` ``[1, heads, tokens, head_dim]``, ``key`` and ``value`` with ``kv_heads``; returns
    ``[1, tokens, heads, head_dim]``. Without ``paged_batch``: plain causal attention over one sequence.

    Raises ``NotImplementedError`` for a model that asks for more than this (soft caps, sinks, biases).
    """
    asked = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if asked or attention_mask is not None:
        raise NotImplementedError(f"the torch engine's attention cannot do {asked or ['attention_mask']}")
    if paged_batch is None:
        return _attend_chunk(query, key, value, None, sliding_window, scaling).transpose(1, 2), None

    layer: int = module.layer_idx  # type: ignore[assignment]
    batch, cache = paged_batch, paged_batch.cache
    batch.num_layers_done += 1
    size = query.shape[-1]
    cache.token_rows[layer].index_copy_(0, batch.key_rows, key[0].transpose(0, 1).reshape(-1, size))
    cache.token_rows[layer].index_copy_(0, batch.value_rows, value[0].transpose(0, 1).reshape(-1, size))

    outputs = [
        _attend_decodes(query, group, cache.gather(layer, group.rows), key.shape[1], sliding_window, scaling)
        for group in batch.decodes
    ]
    for chunk in batch.chunks:
        span = slice(chunk.first_token, chunk.first_token + chunk.num_new)
        if chunk.num_before == 0:
            keys, values = key[:, :, span], value[:, :, span]
        else:
            gathered = cache.gather(layer, chunk.rows)
            gathered = gathered.view(2, 1, key.shape[1], -1, size)[..., : chunk.num_before + chunk.num_new, :]
            keys, values = gathered[0], gathered[1]
        attended = _attend_chunk(query[:, :, span], keys, values, chunk, sliding_window, scaling)
        outputs.append(attended[0].transpose(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _attend_decodes(
    query: torch.Tensor,
    group: DecodeGroup,
    gathered: torch.Tensor,
    num_kv_heads: int,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """``[size, heads, head_dim]``. The query heads of one key head go where query tokens usually are, so
    that keys and values need not be repeated."""
    num_heads, size = query.shape[1], query.shape[-1]
    keys, values = gathered.view(2, group.size, num_kv_heads, -1, size)
    grouped = query[0, :, group.first_token : group.first_token + group.size].transpose(0, 1)
    grouped = grouped.reshape(group.size, num_kv_heads, num_heads // num_kv_heads, size)
    attended = sdpa(grouped, keys, values, attn_mask=group.mask(window), scale=scaling)
    return attended.reshape(group.size, num_heads, size)


def _attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk: PromptChunk | None,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """``[1, heads, new tokens, head_dim]``."""
    num_new, num_seen = query.shape[2], keys.shape[2]
    mask = None
    if num_seen > num_new or (window is not None and window < num_seen):
        before = num_seen - num_new
        mask = chunk.mask(window) if chunk else causal_mask(before, num_new, window, query.device)
    return sdpa(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
