from __future__ import annotations

from dynamo_sdk.launch.idle_memory import TrimDecider, heap_trimmer, resident_bytes

MIB = 2**20


def test_memory_is_given_back_once_after_a_burst() -> None:
    decider = TrimDecider()
    assert not decider.look(8.0, 500 * MIB, interval_s=5.0)  # busy
    assert decider.look(8.05, 500 * MIB, interval_s=5.0)
    decider.trimmed(160 * MIB)
    assert not decider.look(8.1, 160 * MIB, interval_s=5.0)
    assert not decider.look(8.15, 190 * MIB, interval_s=5.0)  # too little
    assert decider.look(8.2, 200 * MIB, interval_s=5.0)


def test_what_could_not_be_given_back_is_not_tried_again() -> None:
    decider = TrimDecider()
    assert decider.look(0.0, 300 * MIB, interval_s=5.0)
    decider.trimmed(300 * MIB)
    assert not decider.look(0.0, 300 * MIB, interval_s=5.0)


def test_a_long_interval_allows_more_work() -> None:
    assert not TrimDecider().look(1.0, 300 * MIB, interval_s=5.0)
    assert TrimDecider().look(1.0, 300 * MIB, interval_s=60.0)


def test_this_process_can_be_looked_at_and_trimmed() -> None:
    assert 10 * MIB < resident_bytes() < 2**40
    trim = heap_trimmer()
    if trim is not None:
        assert trim() in (0, 1)
