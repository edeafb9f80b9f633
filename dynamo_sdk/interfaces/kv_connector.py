"""``KVConnector``: how two engines agree on handing KV blocks over. Read this file to write one.

The control side only: synchronous, pure, no byte of KV. It runs in the frontend's request flow and in
``plan``. The bytes move in ``transfer/`` (engines that implement ``ExposesBlocks``) or inside the
engines themselves (vLLM's NIXL, SGLang's bootstrap), which read the tickets made here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum

from dynamo_sdk.types.kv_transfer import KVTransferParams
from dynamo_sdk.types.requests import GenerateRequest, Role
from dynamo_sdk.types.workers import WorkerRecord


class Handover(StrEnum):
    """``SEQUENTIAL``: prefill answers with a ticket, then decode starts.
    ``RENDEZVOUS``: both legs start at once with tickets made beforehand, and find each other."""

    SEQUENTIAL = "sequential"
    RENDEZVOUS = "rendezvous"


class KVConnector(ABC):
    """Pairs a prefill leg with a decode leg."""

    handover: Handover = Handover.SEQUENTIAL
    first_token: Role = Role.PREFILL
    """Which leg's first token counts (``PREFILL`` or ``DECODE``); the other leg's copy is dropped."""
    decodes_alone: bool = True
    """Whether a decode worker can run a whole request, which it is asked for where no prefill worker is."""

    def engine_args(self, role: Role) -> dict[str, str]:
        """What an engine in this role must be started with; reaches it as ``EngineSetup.connector_args``."""
        return {}

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams | None:
        """What goes with the prefill leg. ``decode`` is known for ``RENDEZVOUS`` only.

        ``request`` is the leg: its id is unique to this attempt, its ``dp_rank`` the one that was chosen.
        """
        return None

    @abstractmethod
    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        """What goes with the decode leg. ``answer`` is what the prefill leg's ``HANDOVER`` chunk carried; for
        ``RENDEZVOUS`` what goes with the prefill leg. Raises ``TransferError`` when no hand-over is possible
        with it."""
