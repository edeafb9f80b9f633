"""The batch scheduler of one worker: which tokens are computed next, in which blocks."""

from .decode_run import NextTokens
from .scheduler import Scheduler
from .sequence import SequenceState
from .step import RunPlan, ScheduledSequence, SchedulerConfig, SequenceUpdate, Step

__all__ = [
    "NextTokens",
    "RunPlan",
    "ScheduledSequence",
    "Scheduler",
    "SchedulerConfig",
    "SequenceState",
    "SequenceUpdate",
    "Step",
]
