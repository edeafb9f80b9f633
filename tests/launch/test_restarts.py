from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.launch.restarts import GiveUp, ReplicaExit, Restart, RestartDecider, RestartPolicy

policies = st.builds(
    RestartPolicy,
    first_delay_s=st.floats(0.01, 2),
    factor=st.floats(1, 4),
    max_delay_s=st.floats(2, 60),
    max_failures=st.integers(1, 8),
    stable_s=st.floats(1, 100),
)
exits = st.builds(
    ReplicaExit,
    code=st.sampled_from([0, 1, 2, 3, 127, 134, 137, 143]),
    ready_for_s=st.none() | st.floats(0, 200),
)


def naive(policy: RestartPolicy, history: list[ReplicaExit]) -> Restart | GiveUp:
    """Decide from the whole history, without memory."""
    row = 0
    for end in reversed(history):
        row += 1
        if end.ready_for_s is not None and end.ready_for_s >= policy.stable_s:
            break
    last = history[-1]
    is_hopeless = last.code in (2, 127) or (last.code == 1 and all(e.ready_for_s is None for e in history))
    if is_hopeless or row >= policy.max_failures:
        return GiveUp("")
    delay_s = policy.first_delay_s
    for _ in range(row - 1):
        delay_s *= policy.factor
    return Restart(min(delay_s, policy.max_delay_s))


@given(policies, st.lists(exits, min_size=1, max_size=20))
def test_the_decision_is_that_of_a_look_at_the_whole_history(
    policy: RestartPolicy, history: list[ReplicaExit]
) -> None:
    decider = RestartDecider(policy)
    for length, end in enumerate(history, start=1):
        expected = naive(policy, history[:length])
        match decider.on_exit(end):
            case Restart(delay_s):
                assert isinstance(expected, Restart)
                assert delay_s == pytest.approx(expected.delay_s)
            case GiveUp(reason):
                assert isinstance(expected, GiveUp)
                assert str(end) in reason
                return


def test_delays_double_and_then_the_slot_is_given_up() -> None:
    decider = RestartDecider(RestartPolicy(first_delay_s=1, max_delay_s=5, max_failures=5))
    killed = ReplicaExit(code=137)
    assert [decider.on_exit(killed) for _ in range(4)] == [Restart(1), Restart(2), Restart(4), Restart(5)]
    assert decider.on_exit(killed) == GiveUp("was killed by SIGKILL, failure 5 in a row")


def test_an_error_before_the_first_readiness_is_final_and_later_it_is_not() -> None:
    failed = ReplicaExit(code=1)
    assert RestartDecider().on_exit(failed) == GiveUp("ended with code 1 before it was ready")
    decider = RestartDecider()
    decider.on_exit(ReplicaExit(code=137, ready_for_s=1))
    assert isinstance(decider.on_exit(failed), Restart)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (ReplicaExit(code=139), "was killed by SIGSEGV"),
        (ReplicaExit(code=250), "ended with code 250 before it was ready"),
        (ReplicaExit(code=3, ready_for_s=1), "ended with code 3"),
    ],
)
def test_an_exit_says_what_happened(end: ReplicaExit, words: str) -> None:
    assert str(end) == words
