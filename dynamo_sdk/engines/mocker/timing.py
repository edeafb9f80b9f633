"""How long a step of a simulated engine takes: ``TimingModel``, and the formula that is the default."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

_MS = 1e-3


class StepWork(msgspec.Struct, frozen=True, kw_only=True):
    """What one forward pass computes.

    ``num_prefill_tokens``: prompt tokens that are new, that is neither cached nor computed before.
    ``num_decode_kv_tokens``: context length, the new token included, summed over the decoding requests.
    ``num_capacity_tokens``: tokens for which this rank has KV blocks.
    """

    num_prefill_requests: int
    num_prefill_tokens: int
    num_decode_requests: int
    num_decode_kv_tokens: int
    num_capacity_tokens: int


class TimingModel(ABC):
    """Pure: equal work takes equal time. Named in ``args`` as ``timing: package.module:Class``, and built
    with ``timing_args`` as keyword arguments; raise ``ValueError`` for arguments that cannot work."""

    @abstractmethod
    def prefill_s(self, work: StepWork) -> float:
        """Seconds for the step's prefill part. Called only when it has one."""

    @abstractmethod
    def decode_s(self, work: StepWork) -> float:
        """Seconds for the step's decode part. Called only when it has one."""

    def step_s(self, work: StepWork) -> float:
        """Seconds for the whole step: prefill, then decode, one after the other."""
        duration_s = 0.0
        if work.num_prefill_tokens:
            duration_s += self.prefill_s(work)
        if work.num_decode_requests:
            duration_s += self.decode_s(work)
        return duration_s


class PolynomialTiming(TimingModel):
    """The polynomials of NVIDIA Dynamo's mocker.

    Source: constants from its public code; the rest from its offline replay (ai-dynamo 1.6.1), to which
    steps of every kind were compared, and which this equals to a microsecond:

    - prefill counts the new tokens of all prompts of the step together, one polynomial over their sum;
    - decode depends on the share of the KV capacity that the decoding contexts take, each counted in full
      even where they share blocks, in tokens and not in blocks, at most 1; it takes at least 1 ms;
    - a step with both takes the sum, and a prompt's first token comes at the end of its last prefill
      step, which does not count it as decoding.

    One thing differs: a request that was preempted recomputes its output tokens as part of the prefill, and
    its next token is no decode, while the original computes only the prompt again and adds a decode.
    """

    def prefill_s(self, work: StepWork) -> float:
        num_tokens = work.num_prefill_tokens
        return (4.209989e-7 * num_tokens * num_tokens + 1.518344e-2 * num_tokens + 16.50142) * _MS

    def decode_s(self, work: StepWork) -> float:
        share = min(1.0, work.num_decode_kv_tokens / work.num_capacity_tokens)
        return max(1.0, -25.74 * share * share + 54.01 * share + 5.74) * _MS
