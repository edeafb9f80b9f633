"""The batch scheduler of one worker: which tokens are computed next, in which blocks."""

from .scheduler import Scheduler
from .sequence import SequenceState
from .step import ScheduledSequence, SchedulerConfig, SequenceUpdate, Step

__all__ = [
    "ScheduledSequence",
    "Scheduler",
    "SchedulerConfig",
    "SequenceState",
    "SequenceUpdate",
    "Step",
]
