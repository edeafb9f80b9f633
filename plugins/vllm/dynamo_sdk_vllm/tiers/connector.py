"""``KVTiersConnector``: what vLLM loads by ``kv_connector_module_path``. Both halves, each in its process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from dynamo_sdk.engines.weights import folder_digest
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.kv import onboarding_policy
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types import KVTier
from dynamo_sdk.types.tokens import unpack_tokens

from .config import Shard, read_config, setups_of, shard_of
from .events import TierEvent, TierEvents
from .held import HeldBlocks
from .memory import PagedMemory
from .messages import Orders, Report
from .names import BlockNamer, namespace_of
from .planning import Planner, StepFacts
from .sharing import answer, asked
from .statistics import Said, merged, of_scheduler, of_worker, total
from .worker import TierWorker

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


MEDIUM_OF_TIER = {KVTier.HOST: "CPU", KVTier.DISK: "STORAGE", KVTier.REMOTE: "EXTERNAL"}
"""As vLLM calls what holds a block."""


@dataclass
class OrdersMetadata(KVConnectorMetadata):
    orders: Orders


@dataclass
class ReportsMetadata(KVConnectorWorkerMetadata):
    reports: list[Report]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> ReportsMetadata:
        assert isinstance(other, ReportsMetadata)
        return ReportsMetadata(self.reports + other.reports)


class SaltedBlockStored(BlockStored, tag="BlockStored", omit_defaults=True):  # type: ignore[call-arg]
    """vLLM says a salt with the first block of a sequence, and we with each."""

    cache_salt: str | None = None


@dataclass
class TierStatistics(KVConnectorStats):
    """``data``: as in ``statistics``."""

    def aggregate(self, other: KVConnectorStats) -> TierStatistics:
        return TierStatistics(merged(self.data, other.data))

    def reduce(self) -> dict[str, int | float]:
        tiers = total([self.data]).tiers
        return {f"blocks loaded from {tier.name}": tier.counts.num_onboarded_blocks for tier in tiers}

    def reset(self) -> None:
        self.data = Said()

    def is_empty(self) -> bool:
        return not self.data


class NoPromMetrics(KVConnectorPromMetrics):
    """A ``MultiConnector`` insists on series for whoever has statistics; the SDK has its own."""

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        pass


class KVTiersConnector(KVConnectorBase_V1, SupportsHMA):
    """Never holds vLLM's blocks: what is freed before it was saved is not saved."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _require_one_group(kv_cache_config)
        _require_bytes_of_tokens_alone(vllm_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._config = read_config(extra)
        self._block_size = vllm_config.cache_config.block_size
        self._num_blocks = kv_cache_config.num_blocks
        self._worker: TierWorker | None = None
        self._planner: Planner | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._planner = self._make_planner()

    def _make_planner(self) -> Planner:
        config = self._vllm_config
        block_bytes = (
            sum(tensor.size for tensor in self._kv_cache_config.kv_cache_tensors) // self._num_blocks
        )
        return Planner(
            namer=BlockNamer(self._namespace(), self._block_size),
            events=TierEvents([setup.tier for setup in self._setups(Shard())]),
            held=HeldBlocks([plan.name for plan in self._config.tiers], config.parallel_config.world_size),
            policy=onboarding_policy(
                self._config.onboarding, block_size=self._block_size, block_bytes=block_bytes
            ),
            block_size=self._block_size,
            counts_uses=any(plan.min_uses > 0 for plan in self._config.tiers),
            now_s=time.monotonic,
        )

    def _namespace(self) -> bytes:
        """All that the bytes of a block depend on beside its tokens. Raises ``ConfigError``."""
        config = self._vllm_config
        model = config.model_config
        folder = Path(model.model)
        if not folder.is_dir():
            raise ConfigError(
                f"KV tiers need the model in a folder, so that its weights can be told apart: {model.model}"
            )
        described = model.hf_config.to_dict()
        for name in ("_name_or_path", "transformers_version"):
            described.pop(name, None)
        (group,) = self._kv_cache_config.kv_cache_groups
        return namespace_of(
            {
                "vllm": vllm.__version__,
                "weights": folder_digest(folder),
                "config": described,
                "dtype": str(model.dtype),
                "quantization": model.quantization,
                "cache_dtype": str(config.cache_config.cache_dtype),
                "layers": group.layer_names,
                "pages": str(group.kv_cache_spec),
                "platform": vllm.platforms.current_platform.device_type,
                "tensor_parallel": config.parallel_config.tensor_parallel_size,
                "pipeline_parallel": config.parallel_config.pipeline_parallel_size,
            }
        )

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a save that was missed is computed again

    def _setups(self, shard: Shard, secret: str | None = None) -> tuple[KVTierSetup, ...]:
        config = self._config
        return setups_of(config.tiers, Registry.discover(), shard, secret, may_lack=config.may_lack)

    # -- scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        num_tokens = self._planning.match(request, num_computed_tokens)
        return num_tokens, bool(num_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        (block_ids,) = blocks.get_block_ids()
        self._planning.admitted(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> OrdersMetadata:
        cached = scheduler_output.scheduled_cached_reqs
        new_block_ids = {
            request_id: block_ids[0]
            for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True)
            if block_ids
        }
        facts = StepFacts(scheduler_output.num_scheduled_tokens, cached.resumed_req_ids, new_block_ids)
        return OrdersMetadata(self._planning.orders(facts))

    def update_connector_output(self, connector_output: Any) -> None:
        said = connector_output.kv_connector_worker_meta
        if isinstance(said, ReportsMetadata):
            self._planning.heard(said.reports)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._planning.ended(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0])

    def reset_cache(self) -> bool:
        self._planning.start_anew(secrets.token_bytes(16))
        return True

    def take_events(self) -> Iterable[KVCacheEvent]:
        return [self._event(event) for event in self._planning.events.take()]

    def _event(self, event: TierEvent) -> KVCacheEvent:
        block, medium = event.block, MEDIUM_OF_TIER[event.tier]
        name = maybe_convert_block_hash(block.name)
        if not event.is_stored:
            return BlockRemoved(block_hashes=[name], medium=medium)
        return SaltedBlockStored(
            block_hashes=[name],
            parent_block_hash=None if block.parent is None else maybe_convert_block_hash(block.parent),
            token_ids=unpack_tokens(block.tokens),
            block_size=self._block_size,
            lora_id=None,
            lora_name=block.lora,
            medium=medium,
            cache_salt=block.cache_salt,
        )

    # -- worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        memory = PagedMemory(kv_caches, num_blocks=self._num_blocks, block_size=self._block_size)
        parallel = self._vllm_config.parallel_config
        rank, num_ranks = parallel.rank, parallel.world_size
        shard = shard_of(parallel, self._config.num_ranks)
        is_one = shard.num_shards == num_ranks  # else several ranks of data parallelism
        folder = Path(self._config.sharing) if self._config.sharing is not None and is_one else None
        sharing = None if folder is None else asked(folder)
        setups = self._setups(shard, None if sharing is None else sharing.secret)
        self._worker = TierWorker(setups, memory, self._num_blocks, rank, num_ranks, sharing)
        self._worker.start()
        if folder is not None and self._worker.shared_at is not None:
            answer(folder, rank, self._worker.shared_at)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._working.begin(self._orders)

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        self._working.load(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are over before a request runs."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Blocks are saved over all layers, after the step."""

    def wait_for_save(self) -> None:
        self._working.end(self._orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._working.take_loaded() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._working.take_invalid()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return ReportsMetadata([self._working.report(self._orders)])

    def get_kv_connector_stats(self) -> TierStatistics | None:
        """On either side."""
        if not self._config.has_statistics:
            return None
        if self._planner is not None:
            planner = self._planner
            return TierStatistics(
                of_scheduler(planner.lookups, planner.num_matched_tokens, planner.num_decisions)
            )
        name = str(self._vllm_config.parallel_config.rank)
        said = of_worker(name, self._working.take_statistics(), self._working.take_sharing())
        return TierStatistics(said) if said else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> TierStatistics:
        return TierStatistics(data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> NoPromMetrics:
        return NoPromMetrics(*arguments)

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    # -- inside

    @property
    def _planning(self) -> Planner:
        assert self._planner is not None, "this is the worker's half"
        return self._planner

    @property
    def _working(self) -> TierWorker:
        assert self._worker is not None, "this is the scheduler's half"
        return self._worker

    @property
    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, OrdersMetadata)
        return metadata.orders


def _require_one_group(kv_cache_config: KVCacheConfig) -> None:
    specs = [type(group.kv_cache_spec).__name__ for group in kv_cache_config.kv_cache_groups]
    if len(specs) != 1 or not _is_full_attention(specs[0]):
        raise ConfigError(
            f"KV tiers hold models whose layers all attend to everything; this one's KV is in the groups "
            f"{', '.join(specs) or 'none'}; try disable_hybrid_kv_cache_manager: true, or leave the tiers out"
        )


def _is_full_attention(spec: str) -> bool:
    return spec in ("FullAttentionSpec", "MLAAttentionSpec")


def _require_bytes_of_tokens_alone(config: Any) -> None:
    """What else a block's bytes would depend on."""
    for part, setting, usual in (
        (config.cache_config, "calculate_kv_scales", False),
        (config.parallel_config, "decode_context_parallel_size", 1),
        (config.parallel_config, "prefill_context_parallel_size", 1),
    ):
        value = getattr(part, setting, usual)
        if value != usual:
            raise ConfigError(f"KV tiers do not go together with {setting}: {value}; leave one of them out")
