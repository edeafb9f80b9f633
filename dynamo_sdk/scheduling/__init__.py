"""The batch scheduler of one worker: which tokens are computed next, in which blocks."""

from .decode_run import NextTokens
from .scheduler import Scheduler
from .sequence import SequenceState, findable_keys
from .step import (
    Onboarding,
    RunPlan,
    ScheduledSequence,
    SchedulerConfig,
    SequenceUpdate,
    Step,
    WantsLoad,
)

__all__ = [
    "NextTokens",
    "Onboarding",
    "RunPlan",
    "ScheduledSequence",
    "Scheduler",
    "SchedulerConfig",
    "SequenceState",
    "SequenceUpdate",
    "Step",
    "WantsLoad",
    "findable_keys",
]
