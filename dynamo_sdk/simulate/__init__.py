"""A graph in virtual time: the same routers, flows, books, indexes and schedulers, and a clock that jumps.

===========  =======================================================================================
module       what it is
===========  =======================================================================================
arrivals     one request of a workload, and the workload
traces       workloads from files: Mooncake JSONL, Azure CSV; and to files
workloads    workloads that are made: shared system prompts, chats, agents, unique prompts
prompts      packed tokens and block keys for what a workload says
spec         what is simulated: pools, routers, how old news are
setup        from a compiled plan to that
timeline     what happens when
rank         one rank of a worker: a ``MockerCore`` on the timeline
fleet        the workers, and what a frontend knows of them
frontend     requests through their flows and routers to the workers
scaling      the graph's planner on the timeline
simulation   all of it, from the first arrival to the last token
record       what became of requests and workers
report       figures from records
text, html   the report for people
===========  =======================================================================================
"""

from .arrivals import Arrival, Workload
from .record import Outcome, RequestRecord
from .simulation import simulate
from .spec import FleetSpec, PoolSpec, SimOptions

__all__ = [
    "Arrival",
    "FleetSpec",
    "Outcome",
    "PoolSpec",
    "RequestRecord",
    "SimOptions",
    "Workload",
    "simulate",
]
