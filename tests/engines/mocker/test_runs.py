"""Steps taken at once end when single steps would, with the same tokens and events."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo_sdk.engines.mocker import MockerCore
from dynamo_sdk.types import GenerateRequest, Role

from .virtual import ask, decode_leg, new_core, prompt

Arrival = tuple[float, GenerateRequest]
History = list[tuple[float, object]]


def drive(core: MockerCore, arrivals: list[Arrival], *, has_runs: bool) -> History:
    """(end of a step, what could be seen of it): last tokens and events."""
    pending, history, now_s = list(arrivals), [], 0.0
    while pending or core.has_requests:
        while pending and pending[0][0] <= now_s:
            at_s, request = pending.pop(0)
            core.add(request, at_s)
        if has_runs and (run := core.plan_run(now_s)) is not None:
            num_begun = len(run.ends_s)
            if pending:  # the step in which the next one comes is the last
                num_begun = min(num_begun, bisect_right((now_s, *run.ends_s[:-1]), pending[0][0]))
            ended = core.end_run(num_begun)
            now_s = run.ends_s[num_begun - 1]
            updates, events = ended.updates, ended.events
        elif (result := core.step(now_s)) is not None:
            now_s = result.started_s + result.duration_s
            updates = tuple(update for update in result.updates if update.finish_reason is not None)
            events = result.events
        else:
            moments = [at_s for at_s, _ in pending[:1]]
            if core.next_transfer_s is not None:
                moments.append(core.next_transfer_s)
            now_s = max(now_s, min(moments))
            continue
        history += [(now_s, update) for update in updates]
        if events is not None:
            history.append((now_s, events))
    core.check_integrity()
    return history


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2),
            st.lists(st.integers(0, 2), min_size=1, max_size=8),
            st.integers(1, 40),
            st.sampled_from(Role),
        ),
        min_size=1,
        max_size=10,
    ),
    st.integers(26, 60),
    st.sampled_from([0, 10**6]),
    st.booleans(),
)
@example(  # once a request lacked a block; long after it had one, a reservation was refused because of it
    workload=[
        (0.0, [0], 1, Role.AGGREGATED),
        (0.0, [0, 0], 21, Role.AGGREGATED),
        (0.015625, [0, 1, 0, 0, 0, 0, 0, 0], 20, Role.AGGREGATED),
        (0.09375, [0], 13, Role.AGGREGATED),
        (0.1875, [0, 2], 11, Role.AGGREGATED),
        (0.625, [0], 1, Role.DECODE),
    ],
    num_blocks=30,
    kv_bytes=0,
    has_tiers=False,
)
@settings(max_examples=100)
def test_steps_at_once_are_single_steps(
    workload: list[tuple[float, list[int], int, Role]], num_blocks: int, kv_bytes: int, has_tiers: bool
) -> None:
    arrivals: list[Arrival] = []
    for number, (at_s, tokens, max_tokens, role) in enumerate(sorted(workload, key=lambda row: row[0])):
        name = f"r{number}"
        request = (
            decode_leg(name, tokens, 1, max_tokens + 1)
            if role is Role.DECODE
            else ask(name, tokens, max_tokens, role=role)
        )
        arrivals.append((at_s, request))
    settings = {"block_size": 2, "num_blocks": num_blocks, "kv_bytes_per_token": kv_bytes}
    if has_tiers and kv_bytes:
        settings["tiers"] = [{"kind": "ram", "capacity": 2 * num_blocks * 2 * kv_bytes}]
    single = drive(new_core(**settings), arrivals, has_runs=False)
    assert drive(new_core(**settings), arrivals, has_runs=True) == single


def test_a_quiet_core_needs_few_calls() -> None:
    core = new_core()
    core.add(ask("r", prompt(100), 200), 0.0)
    history = drive(core, [], has_runs=True)
    assert [type(seen).__name__ for _, seen in history] == ["KVEventBatch"] * 4 + ["SequenceUpdate"]
