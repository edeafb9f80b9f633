"""The same checks as pytest tests, one test per check::

    # test_conformance.py
    from dynamo_sdk.testing.pytest_plugin import EngineTests

    class TestMyEngine(EngineTests):
        def make(self, role):
            return MyEngine(EngineSetup(model=MODEL, role=role), MyConfig())

Nothing is registered and nothing needs to be configured: a test class inherits the tests. Each class runs
its checks on an event loop of its own, so that engines stay up from test to test and are closed at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from dynamo_sdk.interfaces import Engine, KVConnector, KVStore, Planner, Router
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role

from .engine import ENGINE_CHECKS, engine_kit
from .kit import Kit
from .kv_connector import CONNECTOR_CHECKS, kv_connector_kit
from .kv_store import STORE_CHECKS, kv_store_kit
from .planner import PLANNER_CHECKS, planner_kit
from .report import Outcome
from .router import ROUTER_CHECKS, router_kit

_Check = Callable[[Any], Any]


class _KitTests(ABC):
    """What all kinds share; ``timeout_s`` is for one check."""

    timeout_s: ClassVar[float] = 60.0
    _kit: ClassVar[Kit[Any]]
    _portal: ClassVar[BlockingPortal]
    _stack: ClassVar[ExitStack]

    @abstractmethod
    def kit(self) -> Kit[Any]:
        """The checks, ready to run."""

    @classmethod
    def setup_class(cls) -> None:
        cls._stack = ExitStack()
        cls._portal = cls._stack.enter_context(start_blocking_portal())
        cls._kit = cls().kit()
        cls._kit.timeout_s = cls.timeout_s
        cls._stack.callback(lambda: cls._portal.call(cls._kit.close))

    @classmethod
    def teardown_class(cls) -> None:
        cls._stack.close()

    def run(self, check: _Check) -> None:
        """Run one check: skip or fail the test with what it has found."""
        result = self._portal.call(self._kit.run_one, check)
        if result.outcome is Outcome.SKIPPED:
            pytest.skip(result.detail)
        if result.outcome is Outcome.UNCLAIMED:
            pytest.skip(f"unclaimed: {result.detail}")
        if result.outcome is Outcome.FAILED:
            pytest.fail(f"{result.name}: {result.explanation}", pytrace=False)


def _tests(checks: tuple[_Check, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=[check.__name__ for check in checks])


class EngineTests(_KitTests):
    """Override ``make``; the attributes are the arguments of ``engine_kit``."""

    roles: ClassVar[Collection[Role]] = tuple(Role)
    vocab_size: ClassVar[int] = 64
    is_exact: ClassVar[bool] = True
    connector: ClassVar[KVConnector | None] = None
    loras: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def make(self, role: Role) -> Engine:
        """A new engine, not yet started."""

    def make_unstartable(self, role: Role) -> Engine:
        """One whose start must fail, as for a model that is not there. Without it a check is skipped."""
        raise NotImplementedError

    def kit(self) -> Kit[Any]:
        can_fail = type(self).make_unstartable is not EngineTests.make_unstartable
        return engine_kit(
            self.make,
            unstartable=self.make_unstartable if can_fail else None,
            roles=self.roles,
            vocab_size=self.vocab_size,
            is_exact=self.is_exact,
            connector=self.connector,
            loras=self.loras,
        )

    @_tests(ENGINE_CHECKS)
    def test_conforms(self, check: _Check) -> None:
        self.run(check)


class RouterTests(_KitTests):
    """Override ``make``."""

    @abstractmethod
    def make(self) -> Router:
        """A new router."""

    def kit(self) -> Kit[Any]:
        return router_kit(self.make)

    @_tests(ROUTER_CHECKS)
    def test_conforms(self, check: _Check) -> None:
        self.run(check)


class PlannerTests(_KitTests):
    """Override ``make``."""

    @abstractmethod
    def make(self) -> Planner:
        """A new planner."""

    def kit(self) -> Kit[Any]:
        return planner_kit(self.make)

    @_tests(PLANNER_CHECKS)
    def test_conforms(self, check: _Check) -> None:
        self.run(check)


class KVConnectorTests(_KitTests):
    """Override ``make`` and set ``name``, as installed; ``answer`` where prefill legs answer something that
    the connector reads."""

    name: ClassVar[str]
    answer: ClassVar[Callable[[GenerateRequest], KVTransferParams | None] | None] = None

    @abstractmethod
    def make(self) -> KVConnector:
        """A new connector."""

    def kit(self) -> Kit[Any]:
        return kv_connector_kit(self.make, name=self.name, answer=type(self).answer)

    @_tests(CONNECTOR_CHECKS)
    def test_conforms(self, check: _Check) -> None:
        self.run(check)


class KVStoreTests(_KitTests):
    """Override ``make``. ``is_on_disk``: it keeps its blocks in the folder, and finds what another one left
    there; else the folder is of no use."""

    is_on_disk: ClassVar[bool] = False

    @abstractmethod
    def make(self, folder: Path) -> KVStore:
        """A new store."""

    def kit(self) -> Kit[Any]:
        if self.is_on_disk:
            return kv_store_kit(on_disk=self.make)
        return kv_store_kit(lambda: self.make(Path()))

    @_tests(STORE_CHECKS)
    def test_conforms(self, check: _Check) -> None:
        self.run(check)
