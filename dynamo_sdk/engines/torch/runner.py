"""One step on the device: pack the scheduled sequences, run the model once, sample.

Everything here runs on the engine's one worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.types import TokenLogprobs

from .attention import DecodeGroup, PagedBatch, PromptChunk
from .cache import PagedKVCache
from .loader import LoadedModel
from .loras import LoraLayers, LoraWeights
from .sampler import SamplingRow, sample

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One sequence of a step. ``token_ids`` are to be computed, the first at position ``start``;
    ``block_ids`` hold everything up to the last of them. ``sampling`` = None: no token is wanted yet.
    ``lora``: its adapter."""

    request_id: str
    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    sampling: SamplingRow | None
    lora: LoraWeights | None = None

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.token_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    token_id: int
    logprobs: TokenLogprobs | None = None


class ModelRunner:
    """Owns no state of requests: what it needs of them comes with each step."""

    def __init__(self, model: LoadedModel, cache: PagedKVCache) -> None:
        self._model = model
        self._cache = cache
        self.loras = LoraLayers(model.network)
        heads = model.geometry.num_kv_heads
        per_block, size = cache.rows_per_block, cache.block_size
        # Row numbers relative to a block's first row; see PagedKVCache.
        self._kv_head_rows = np.arange(2 * heads, dtype=np.int64).reshape(2, 1, heads, 1)
        self._key_rows = np.arange(heads, dtype=np.int64) * size
        self._value_rows = self._key_rows + heads * size
        self._block_stride = per_block
        self._slot_stride = per_block * size

    @torch.inference_mode()
    def execute(self, rows: Sequence[StepRow]) -> dict[str, SampledToken]:
        """Compute all rows, store their KV, and return the next token of those that want one."""
        decodes = sorted((row for row in rows if len(row.token_ids) == 1), key=lambda row: row.start)
        packed = decodes + [row for row in rows if len(row.token_ids) != 1]
        hidden_rows, wanted, end = [], [], 0
        for row in packed:
            end += len(row.token_ids)
            if row.sampling is not None:
                hidden_rows.append(end - 1)
                wanted.append((row.request_id, row.sampling))
        logits = self._forward(self._batch(packed, len(decodes)), packed, hidden_rows)
        if not wanted:
            return {}
        token_ids, logprobs = sample(logits, [sampling for _, sampling in wanted])
        return {
            request_id: SampledToken(token_id=token_id, logprobs=logprob)
            for (request_id, _), token_id, logprob in zip(wanted, token_ids, logprobs, strict=True)
        }

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int], lora: LoraWeights | None = None) -> list[float]:
        """Mean of the last hidden states, of unit length."""
        ids = torch.tensor([token_ids], device=self._model.device)
        with self.loras.applied([] if lora is None else [(lora, self._to_device(range(len(token_ids))))]):
            output = self._model.network.base_model(input_ids=ids, use_cache=False)
        mean = output.last_hidden_state[0].float().mean(0)
        vector: list[float] = torch.nn.functional.normalize(mean, dim=0).tolist()
        return vector

    def warm_up(self) -> None:
        """One step that touches block 0 only. Raises ``EngineStartError`` when the model's attention
        cannot run on the paged cache."""
        row = StepRow(request_id="warm-up", token_ids=(0,), start=0, block_ids=(0,), sampling=None)
        try:
            with torch.inference_mode():
                batch = self._batch([row], 1)
                self._forward(batch, [row], [])
        except (NotImplementedError, TypeError, RuntimeError) as error:
            raise EngineStartError(f"the torch engine cannot run this architecture: {error}") from error
        if batch.num_layers_done != self._model.geometry.num_layers:
            kind = type(self._model.network).__name__
            raise EngineStartError(
                f"{kind} does not take its attention from transformers' registry; the torch engine needs that"
            )

    def _forward(
        self, batch: PagedBatch, packed: Sequence[StepRow], hidden_rows: Sequence[int]
    ) -> torch.Tensor:
        """Logits ``[len(hidden_rows), vocabulary]`` in float32."""
        ids = [token_id for row in packed for token_id in row.token_ids]
        positions = [position for row in packed for position in row.positions]
        with self.loras.applied(self._adapted(packed)):
            output = self._model.network(
                input_ids=self._to_device(ids)[None],
                position_ids=self._to_device(positions)[None],
                use_cache=False,
                logits_to_keep=self._to_device(hidden_rows),
                paged_batch=batch,
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _adapted(self, packed: Sequence[StepRow]) -> list[tuple[LoraWeights, torch.Tensor]]:
        """Which tokens of the step are each adapter's."""
        tokens: dict[LoraWeights, list[int]] = {}
        first = 0
        for row in packed:
            end = first + len(row.token_ids)
            if row.lora is not None:
                tokens.setdefault(row.lora, []).extend(range(first, end))
            first = end
        return [(lora, self._to_device(places)) for lora, places in tokens.items()]

    def _batch(self, packed: Sequence[StepRow], num_decodes: int) -> PagedBatch:
        size = self._cache.block_size
        slots = [
            row.block_ids[position // size] * self._slot_stride + position % size
            for row in packed
            for position in row.positions
        ]
        first_rows = np.asarray(slots, dtype=np.int64)[:, None]  # layer 0, keys, head 0
        chunks, first = [], num_decodes
        for row in packed[num_decodes:]:
            num_new = len(row.token_ids)
            used = row.block_ids[: -(-(row.start + num_new) // size)]
            chunks.append(
                PromptChunk(
                    first_token=first,
                    num_new=num_new,
                    num_before=row.start,
                    rows=self._to_device(self._gather_rows(np.asarray([used], dtype=np.int64))),
                )
            )
            first += num_new
        return PagedBatch(
            cache=self._cache,
            key_rows=self._to_device((first_rows + self._key_rows).reshape(-1)),
            value_rows=self._to_device((first_rows + self._value_rows).reshape(-1)),
            decodes=self._decode_groups(packed[:num_decodes]),
            chunks=chunks,
        )

    def _decode_groups(self, decodes: Sequence[StepRow]) -> list[DecodeGroup]:
        """Cut the length-sorted decodes so that padding at most doubles the shortest of each group."""
        size = self._cache.block_size
        groups: list[DecodeGroup] = []
        first = 0
        while first < len(decodes):
            limit = 2 * max(decodes[first].start, 4 * size)
            last = first
            while last < len(decodes) and decodes[last].start <= limit:
                last += 1
            members = decodes[first:last]
            lengths = np.asarray([row.start + 1 for row in members], dtype=np.int64)
            num_blocks = -(-int(lengths[-1]) // size)
            table = np.zeros((len(members), num_blocks), dtype=np.int64)  # padding reads block 0, masked
            for line, row in zip(table, members, strict=True):
                used = -(-(row.start + 1) // size)
                line[:used] = row.block_ids[:used]
            groups.append(
                DecodeGroup(
                    first_token=first,
                    size=len(members),
                    num_tokens=num_blocks * size,
                    rows=self._to_device(self._gather_rows(table)),
                    lengths=self._to_device(lengths),
                )
            )
            first = last
        return groups

    def _gather_rows(self, table: Indices) -> Indices:
        """Block rows of a ``[sequences, blocks]`` table: ``[2, sequences, kv_heads, blocks]``, flat."""
        return (table[None, :, None, :] * self._block_stride + self._kv_head_rows).reshape(-1)

    def _to_device(self, indices: Indices | Sequence[int]) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return tensor if self._model.device.type == "cpu" else tensor.to(self._model.device)
