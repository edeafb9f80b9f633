"""The simulated engine: everything an engine does, but its forward pass is a formula for time.

=============  =======================================================================================
module         what it is
=============  =======================================================================================
config         what a deploy file may say
timing         how long a step takes: the interface, and the default formula
profile        how long a step takes, from a table of measurements
tokens         which token comes next: a pure function of (seed, position)
model          what little of the model must be known: vocabulary, context, end tokens, bytes of KV
transfers      the way of a prompt's KV from a prefill to a decode worker
tiers          what a rank keeps below its device, and when it is loaded: books and decisions of live tiers
tier           one of them in virtual time; channels: how long its transfers take
tier_config    how large they are and how fast; tier_statistics: what they did
core           one rank in virtual time: requests in, steps out; no loop and no clock
build          from the config to cores
precise_clock  live time, to microseconds
rank           a core on a clock: steps end when they are due, then their tokens are delivered
engine         the interfaces of an engine, on top of the ranks
=============  =======================================================================================

Blocks, prefix cache, batching, chunking and preemption are those of ``dynamo_sdk.scheduling``, the same
that the torch engine runs. A simulation drives ``MockerCore`` itself.
"""

from .build import build_cores
from .config import MockerConfig
from .core import Admission, MockerCore, PlannedRun, RunResult, StepResult
from .timing import PolynomialTiming, StepWork, TimingModel
from .tokens import TokenSource

__all__ = [
    "Admission",
    "MockerConfig",
    "MockerCore",
    "PlannedRun",
    "PolynomialTiming",
    "RunResult",
    "StepResult",
    "StepWork",
    "TimingModel",
    "TokenSource",
    "build_cores",
]
