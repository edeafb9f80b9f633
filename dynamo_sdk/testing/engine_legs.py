"""The two legs of a disaggregated request, as the request flow would run them, between two engines."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import msgspec

from dynamo_sdk.interfaces import Engine, ExposesBlocks, Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, Role, WorkerRecord, pack_tokens

from .engine_bench import EngineBench
from .report import CheckFailed, NotApplicable, require
from .streams import Answer, read_all, worker_record

replace = msgspec.structs.replace


@dataclass(frozen=True, slots=True)
class Legs:
    """``connector`` None: blocks are copied here (``ExposesBlocks``), or the ticket goes over as it is.
    ``address``: the prefill engine's ``handover_address``."""

    prefill: Engine
    decode: Engine
    connector: KVConnector | None
    address: str | None = None

    @classmethod
    async def of(cls, bench: EngineBench) -> Legs:
        """The shared engines. Skips the check where there are not both roles."""
        prefill, decode = await bench.engine(Role.PREFILL), await bench.engine(Role.DECODE)
        return cls(prefill, decode, bench.connector, (await bench.facts(Role.PREFILL)).handover_address)

    @property
    def is_rendezvous(self) -> bool:
        return self.connector is not None and self.connector.handover is Handover.RENDEZVOUS

    async def alone(self, bench: EngineBench) -> Engine:
        """One that gives whole answers: decode, where it is not there for legs only."""
        return await bench.any_engine() if self.is_rendezvous else self.decode

    @property
    def _first_token(self) -> Role:
        """The leg whose first token counts; the other one's copy is dropped."""
        return Role.PREFILL if self.connector is None else self.connector.first_token

    @property
    def _prefill_record(self) -> WorkerRecord:
        return worker_record("prefill", Role.PREFILL, handover_address=self.address)

    def prefill_request(self, request: GenerateRequest) -> GenerateRequest:
        ticket = None
        if self.connector is not None:
            decode = worker_record("decode", Role.DECODE) if self.is_rendezvous else None
            ticket = self.connector.prefill_ticket(request, self._prefill_record, decode)
        return replace(request, role=Role.PREFILL, kv_transfer=ticket)

    def decode_request(self, request: GenerateRequest, first: Answer | None) -> GenerateRequest:
        """``first``: what the prefill leg answered; None for a rendezvous."""
        ticket = first.kv_transfer if first is not None else None
        if self.is_rendezvous:
            ticket = self.prefill_request(request).kv_transfer
        if self.connector is not None:
            ticket = self.connector.decode_ticket(request, self._prefill_record, ticket)
        elif ticket is None and not isinstance(self.prefill, ExposesBlocks):
            raise NotApplicable("the engine neither exposes blocks nor answers with a ticket")
        has_counted = first is not None and self._first_token is Role.PREFILL
        generated = pack_tokens(first.token_ids if first is not None and has_counted else ())
        return replace(request, role=Role.DECODE, generated=generated, kv_transfer=ticket)

    async def run(self, request: GenerateRequest) -> list[int]:
        """All tokens of both legs, in order."""
        if self.is_rendezvous:
            return await self._run_together(request)
        first = await read_all(self.prefill, self.prefill_request(request))
        second = self.decode_request(request, first)
        await self.transfer(second)
        rest = (await read_all(self.decode, second)).token_ids
        return self.joined(first, rest)

    def joined(self, first: Answer, rest: list[int]) -> list[int]:
        """The output of a sequential hand-over, from what both legs gave."""
        return rest if self._first_token is Role.DECODE else first.token_ids + rest

    async def transfer(self, request: GenerateRequest) -> None:
        """Copy the blocks of a decode request, where engines expose them."""
        if not (isinstance(self.prefill, ExposesBlocks) and isinstance(self.decode, ExposesBlocks)):
            return
        held = self.prefill.held_blocks(request.request_id)
        block_bytes = self.prefill.block_memory.layout.block_bytes
        data = memoryview(bytearray(len(held) * block_bytes))
        self.prefill.block_memory.read(held, data)
        self.prefill.release_blocks(request.request_id)
        reservation = await self.decode.reserve_blocks(request)
        num_cached, num_blocks = reservation.num_cached_blocks, len(reservation.block_ids)
        require(len(held) >= num_blocks, f"prefill holds {len(held)} blocks, decode reserved {num_blocks}")
        wanted = reservation.block_ids[num_cached:]
        if wanted:
            self.decode.block_memory.write(wanted, data[num_cached * block_bytes : num_blocks * block_bytes])

    async def _run_together(self, request: GenerateRequest) -> list[int]:
        assert self.connector is not None
        answers: dict[Role, Answer] = {}

        async def run(engine: Engine, leg: GenerateRequest) -> None:
            answers[leg.role] = await read_all(engine, leg)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, self.prefill, self.prefill_request(request))
            tasks.start_soon(run, self.decode, self.decode_request(request, None))
        first, rest = answers[Role.PREFILL].token_ids, answers[Role.DECODE].token_ids
        if not rest:
            raise CheckFailed("the decode leg gave no token")
        return rest if self.connector.first_token is Role.DECODE else first[:1] + rest[1:]
