"""The engines that the engine checks work on: one per role, started when first asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from dynamo_sdk.errors import DynamoError, EngineStartError, InvalidRequest
from dynamo_sdk.interfaces import Engine, EngineFacts, KVConnector
from dynamo_sdk.types import GenerateRequest, LoadSnapshot, Role, SamplingParams

from .kv_recording import KVRecording
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all

EngineFactory = Callable[[Role], Engine]
"""Makes a new engine, not yet started, for a worker in this role."""


@dataclass(slots=True, kw_only=True)
class EngineBench:
    """What ``check_engine`` was told (its arguments say what each field means), and the engines that run."""

    factory: EngineFactory
    roles: Collection[Role] = tuple(Role)
    vocab_size: int = 64
    is_exact: bool = True
    connector: KVConnector | None = None
    unstartable: EngineFactory | None = None
    loras: Sequence[str] = ()
    probe_timeout_s: float = 30.0
    kv_recordings: dict[bool, KVRecording] = field(default_factory=dict)
    _running: dict[Role, tuple[Engine, EngineFacts]] = field(default_factory=dict)
    _unusable: dict[Role, str] = field(default_factory=dict)

    async def engine(self, role: Role = Role.AGGREGATED) -> Engine:
        """The started engine of this role, shared by the checks. Skips the check without such a role."""
        return (await self._started(role))[0]

    async def facts(self, role: Role = Role.AGGREGATED) -> EngineFacts:
        return (await self._started(role))[1]

    async def any_engine(self) -> Engine:
        """The engine for whole answers: aggregated, or decode where there is no such role."""
        return await self.engine(self.whole_role)

    @property
    def whole_role(self) -> Role:
        return Role.AGGREGATED if Role.AGGREGATED in self.roles else Role.DECODE

    def new_engine(self, role: Role | None = None) -> Engine:
        """An engine of the check's own, which the check must close."""
        return self.factory(self.whole_role if role is None else role)

    @asynccontextmanager
    async def own_engine(self) -> AsyncIterator[tuple[Engine, EngineFacts]]:
        """A started engine that no other check has asked anything."""
        self._require_usable(self.whole_role)
        engine = self.new_engine()
        try:
            yield engine, await engine.start()
        finally:
            await engine.close()

    def give_up(self, role: Role, reason: str) -> None:
        """Skip all further checks of this role: each would only fail for the same reason, slowly."""
        self._unusable[role] = reason

    async def discard(self) -> None:
        """Close the shared engines; the next check gets new ones."""
        running, self._running = self._running, {}
        for engine, _ in running.values():
            await engine.close()

    def prompt(self, seed: int, num_tokens: int = 12) -> list[int]:
        """Always the same ids for one seed; the first ten are left out, where special tokens live."""
        rng = Random(seed)
        return [rng.randrange(min(10, self.vocab_size - 1), self.vocab_size) for _ in range(num_tokens)]

    def greedy(
        self,
        seed: int = 0,
        *,
        num_tokens: int = 8,
        generated: Iterable[int] = (),
        role: Role = Role.AGGREGATED,
        sampling: SamplingParams | None = None,
    ) -> GenerateRequest:
        """A request for exactly ``num_tokens`` tokens, whatever the model says."""
        return generate_request(
            self.prompt(seed), sampling or greedy(num_tokens), generated=generated, role=role
        )

    def _require_usable(self, role: Role) -> None:
        if role in self._unusable:
            raise NotApplicable(self._unusable[role])

    async def _started(self, role: Role) -> tuple[Engine, EngineFacts]:
        if role not in self.roles:
            raise NotApplicable(f"the engine has no role {role}")
        self._require_usable(role)
        if role not in self._running:
            engine = self.factory(role)
            try:
                self._running[role] = (engine, await engine.start())
            except EngineStartError:
                self.give_up(role, f"an engine in the role {role} does not start")
                await engine.close()
                raise
        return self._running[role]


def greedy(num_tokens: int) -> SamplingParams:
    """The likeliest ``num_tokens`` tokens, end tokens or not."""
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


async def require_refused(engine: Engine, request: GenerateRequest, what: str) -> None:
    """The engine raises ``InvalidRequest`` before the first chunk."""
    before = engine.load()
    try:
        answer = await read_all(engine, request)
    except InvalidRequest:
        require_settled(engine, before)
    except DynamoError as error:
        raise CheckFailed(f"{what} raised {type(error).__name__}, not InvalidRequest") from error
    else:
        raise CheckFailed(f"{what} was accepted and gave {len(answer.token_ids)} tokens")


def require_settled(engine: Engine, before: LoadSnapshot | None) -> None:
    """Nothing runs, nothing waits, and at least the blocks that were free ``before`` are free again: one
    that was held for a peer then may have been given up meanwhile."""
    engine.check_integrity()
    now = engine.load()
    if now is None:
        return
    require(now.num_running == 0, f"load() still reports {now.num_running} running requests")
    require(now.num_waiting == 0, f"load() still reports {now.num_waiting} waiting requests")
    require(now.num_waiting_tokens == 0, f"load() still reports {now.num_waiting_tokens} waiting tokens")
    if before is not None:
        require(
            before.num_free_blocks <= now.num_free_blocks <= now.num_blocks,
            f"{before.num_free_blocks} of {now.num_blocks} blocks were free, now {now.num_free_blocks}",
        )
