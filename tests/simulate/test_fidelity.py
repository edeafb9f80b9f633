"""The rows of NVIDIA Dynamo's offline replay (ai-dynamo 1.6.1, round-robin, deterministic), within 2 %.

Eight workers, blocks of 64 tokens, 2,048 of them per worker, 256 sequences and 8,192 tokens a step.
"""

from __future__ import annotations

import pytest

from benchmarks.reference_traces import zipf_prompts
from dynamo_sdk.bench.report import Targets
from dynamo_sdk.simulate import Workload, simulate
from dynamo_sdk.simulate.report import PolicyReport, make_report

from .fleets import fleet


def figures(workload: Workload) -> PolicyReport:
    outcome = simulate(workload, fleet(num_workers=8, num_blocks=2048))
    (policy,) = make_report(workload, [outcome], targets=Targets(), settings={}).policies
    assert policy.num_ok == len(workload.arrivals)
    assert policy.ttft_ms and policy.itl_ms and policy.gap_ms and policy.e2e_ms  # noqa: PT018
    return policy


def close(value: float) -> object:
    return pytest.approx(value, rel=0.02)


def test_below_saturation() -> None:
    found = figures(zipf_prompts(3000, rate=24))
    assert found.reuse.cached == pytest.approx(0.5491271, abs=1e-6)
    assert found.ttft_ms.mean == pytest.approx(88.18745, abs=1e-3)
    assert found.ttft_ms.p99 == close(162.18)
    assert found.itl_ms.mean == pytest.approx(28.06519, abs=1e-3)
    assert found.gap_ms.mean == pytest.approx(28.62672, abs=1e-3)
    assert found.e2e_ms.mean == pytest.approx(3688.799, abs=0.05)
    assert found.gpu_hours == close(0.280677)
    assert found.num_preemptions == 0


def test_beyond_saturation() -> None:
    found = figures(zipf_prompts(6000, rate=60))
    assert found.reuse.cached == close(0.557027)
    assert found.reuse.with_restarts == close(0.570074)
    assert found.ttft_ms.mean == close(5788.97)
    assert found.ttft_ms.p99 == close(15889.4)
    assert found.gap_ms.mean == close(48.15)
    assert found.e2e_ms.mean == close(11789.7)
    assert found.output_tokens_per_s == close(6104)
    assert found.num_preemptions == pytest.approx(220, rel=0.1)
