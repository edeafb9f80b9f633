"""Frozen records without behaviour: the words that every room shares."""

from .kv_events import BlocksCleared, BlocksRemoved, BlocksStored, KVEvent, KVEventBatch, KVTier
from .kv_transfer import KVLayout, KVTransferParams
from .loads import ForwardPassMetrics, LoadSnapshot
from .models import ModelRecord, ModelSpec
from .outputs import FinishReason, GenerateChunk, LegTiming, TokenLogprobs, Usage
from .requests import EmbedOutput, EmbedRequest, GenerateRequest, Role, SamplingParams
from .tokens import NO_TOKENS, PackedTokens, num_tokens, pack_tokens, unpack_tokens
from .workers import WorkerId, WorkerRecord

__all__ = [
    "NO_TOKENS",
    "BlocksCleared",
    "BlocksRemoved",
    "BlocksStored",
    "EmbedOutput",
    "EmbedRequest",
    "FinishReason",
    "ForwardPassMetrics",
    "GenerateChunk",
    "GenerateRequest",
    "KVEvent",
    "KVEventBatch",
    "KVLayout",
    "KVTier",
    "KVTransferParams",
    "LegTiming",
    "LoadSnapshot",
    "ModelRecord",
    "ModelSpec",
    "PackedTokens",
    "Role",
    "SamplingParams",
    "TokenLogprobs",
    "Usage",
    "WorkerId",
    "WorkerRecord",
    "num_tokens",
    "pack_tokens",
    "unpack_tokens",
]
