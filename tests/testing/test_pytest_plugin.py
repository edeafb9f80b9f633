"""The pytest classes run here as they would in a plugin's own tests; a faulty one fails where it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dynamo_sdk.interfaces import Engine, KVConnector, KVStore, Planner, Router
from dynamo_sdk.routing import router_from_function
from dynamo_sdk.testing import ROUTER_CHECKS, FakeKVConnector, FakePlanner
from dynamo_sdk.testing.pytest_plugin import (
    EngineTests,
    KVConnectorTests,
    KVStoreTests,
    PlannerTests,
    RouterTests,
)
from dynamo_sdk.types import Role

from .folder_store import FolderKVStore
from .paged_engine import ADAPTERS, PagedEngine


@router_from_function
def first(request, candidates, context):  # type: ignore[no-untyped-def]
    return candidates[0]


class TestPaged(EngineTests):
    loras = ADAPTERS

    def make(self, role: Role) -> Engine:
        return PagedEngine()

    def make_unstartable(self, role: Role) -> Engine:
        engine = PagedEngine()
        engine.is_broken = True
        return engine


class TestFirst(RouterTests):
    def make(self) -> Router:
        return first()


class TestFakePlanner(PlannerTests):
    def make(self) -> Planner:
        return FakePlanner()


class TestFakeConnector(KVConnectorTests):
    name = "fake"

    def make(self) -> KVConnector:
        return FakeKVConnector()


class TestFolder(KVStoreTests):
    is_on_disk = True

    def make(self, folder: Path) -> KVStore:
        return FolderKVStore(folder)


FAULTY = """
from dynamo_sdk.testing import FakeRouter
from dynamo_sdk.testing.pytest_plugin import RouterTests

class TestMine(RouterTests):
    def make(self):
        return FakeRouter()
"""


def test_a_failure_is_one_test_with_its_rule(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(FAULTY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"1 failed, {len(ROUTER_CHECKS) - 1} passed" in done.stdout
    assert "TestMine::test_conforms[forgets_what_has_ended]" in done.stdout
    assert "rule: What a router remembers" in done.stdout
