"""Frozen records without behaviour: the words that every room shares."""

from .kv_events import (
    BlocksCleared,
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    KVDigest,
    KVDigestBatch,
    KVEvent,
    KVEventBatch,
    KVTier,
    MovedDigest,
    RemovedDigest,
    StoredDigest,
)
from .kv_transfer import (
    BackEndChoice,
    KVAxis,
    KVLayout,
    KVShape,
    KVSource,
    KVTransferParams,
    TransferSettings,
)
from .loads import BlockLoadTimes, ForwardPassMetrics, LoadSnapshot
from .models import LoraSpec, ModelRecord, ModelSpec
from .outputs import FinishReason, GenerateChunk, LegTiming, TokenLogprobs, Usage
from .requests import EmbedOutput, EmbedRequest, GenerateRequest, Role, SamplingParams
from .tokens import NO_TOKENS, PackedTokens, num_tokens, pack_tokens, unpack_tokens
from .workers import WorkerId, WorkerRecord

__all__ = [
    "NO_TOKENS",
    "BackEndChoice",
    "BlockLoadTimes",
    "BlocksCleared",
    "BlocksMoved",
    "BlocksRemoved",
    "BlocksStored",
    "EmbedOutput",
    "EmbedRequest",
    "FinishReason",
    "ForwardPassMetrics",
    "GenerateChunk",
    "GenerateRequest",
    "KVAxis",
    "KVDigest",
    "KVDigestBatch",
    "KVEvent",
    "KVEventBatch",
    "KVLayout",
    "KVShape",
    "KVSource",
    "KVTier",
    "KVTransferParams",
    "LegTiming",
    "LoadSnapshot",
    "LoraSpec",
    "ModelRecord",
    "ModelSpec",
    "MovedDigest",
    "PackedTokens",
    "RemovedDigest",
    "Role",
    "SamplingParams",
    "StoredDigest",
    "TokenLogprobs",
    "TransferSettings",
    "Usage",
    "WorkerId",
    "WorkerRecord",
    "num_tokens",
    "pack_tokens",
    "unpack_tokens",
]
