"""What we offer keeps the promises of its interfaces."""

from acme.engine import MirrorConfig, MirrorEngine
from acme.planner import QueueConfig, QueuePlanner
from acme.router import Roomiest
from acme.store import FolderConfig, FolderStore

from dynamo_sdk.testing.pytest_plugin import EngineTests, KVStoreTests, PlannerTests, RouterTests
from dynamo_sdk.types import Role


class TestMirror(EngineTests):
    roles = [Role.AGGREGATED]

    def make(self, role):
        return MirrorEngine(None, MirrorConfig())


class TestRoomiest(RouterTests):
    def make(self):
        return Roomiest()


class TestQueue(PlannerTests):
    def make(self):
        return QueuePlanner(QueueConfig())


class TestFolder(KVStoreTests):
    is_on_disk = True

    def make(self, folder):
        return FolderStore(FolderConfig(path=folder))
