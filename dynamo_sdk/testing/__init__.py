"""For whoever writes a plugin or tests a graph: checks of anybody's implementation, and fakes.

The checks need no test framework; each takes a factory and returns a ``Report`` of named results::

    report = await check_engine(lambda role: MyEngine(EngineSetup(model=model, role=role), config))
    report.raise_if_failed()
"""

from dynamo_sdk.runtime.clock import ManualClock
from dynamo_sdk.runtime.memory import MemoryNetwork

from .engine import ENGINE_CHECKS, check_engine, engine_kit
from .engine_bench import EngineBench, EngineFactory
from .fake_engine import FakeEngine
from .fakes import FakeKVConnector, FakePlanner, FakeRouter, MemoryKVStore
from .installed import CHECKED_KINDS, CheckOptions, installed_kit
from .kit import Kit
from .kv_connector import CONNECTOR_CHECKS, check_kv_connector, kv_connector_kit
from .kv_store import STORE_CHECKS, check_kv_store, kv_store_kit
from .planner import PLANNER_CHECKS, check_planner, planner_kit
from .report import CheckResult, Outcome, Report
from .router import ROUTER_CHECKS, check_router, router_kit, routing_rounds
from .streams import Answer, generate_request, read_all, worker_record

__all__ = [
    "CHECKED_KINDS",
    "CONNECTOR_CHECKS",
    "ENGINE_CHECKS",
    "PLANNER_CHECKS",
    "ROUTER_CHECKS",
    "STORE_CHECKS",
    "Answer",
    "CheckOptions",
    "CheckResult",
    "EngineBench",
    "EngineFactory",
    "FakeEngine",
    "FakeKVConnector",
    "FakePlanner",
    "FakeRouter",
    "Kit",
    "ManualClock",
    "MemoryKVStore",
    "MemoryNetwork",
    "Outcome",
    "Report",
    "check_engine",
    "check_kv_connector",
    "check_kv_store",
    "check_planner",
    "check_router",
    "engine_kit",
    "generate_request",
    "installed_kit",
    "kv_connector_kit",
    "kv_store_kit",
    "planner_kit",
    "read_all",
    "router_kit",
    "routing_rounds",
    "worker_record",
]
