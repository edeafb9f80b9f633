"""The kit's own promises: rules with advice, bounded time, places."""

from __future__ import annotations

import anyio
import pytest

from dynamo_sdk.testing import (
    CONNECTOR_CHECKS,
    ENGINE_CHECKS,
    PLANNER_CHECKS,
    ROUTER_CHECKS,
    STORE_CHECKS,
    FakeEngine,
    Kit,
    Outcome,
)
from dynamo_sdk.testing.kit import rule_and_advice
from dynamo_sdk.testing.places import Subject
from dynamo_sdk.testing.report import NotApplicable, NotClaimed, require

ALL_CHECKS = [*ENGINE_CHECKS, *ROUTER_CHECKS, *PLANNER_CHECKS, *CONNECTOR_CHECKS, *STORE_CHECKS]


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_each_check_says_its_rule_and_what_helps(check: object) -> None:
    for text in rule_and_advice(check):  # type: ignore[arg-type]
        assert len(text) > 20
        assert text.endswith(".")


async def passes(bench: None) -> None:
    """A.\n\nB."""


async def fails(bench: None) -> None:
    """A.\n\nB."""
    require(False, "seen")


async def is_skipped(bench: None) -> None:
    """A.\n\nB."""
    raise NotApplicable("has none")


async def is_unclaimed(bench: None) -> None:
    """A.\n\nB."""
    raise NotClaimed("cannot")


async def hangs(bench: None) -> None:
    """A.\n\nB."""
    await anyio.sleep_forever()


async def raises_its_own_timeout(bench: None) -> None:
    """A.\n\nB."""
    raise TimeoutError("of the engine")


@pytest.mark.anyio
async def test_outcomes() -> None:
    discarded = []

    async def discard() -> None:
        discarded.append(1)

    kit = Kit(
        subject=Subject.of(FakeEngine()),
        checks=(passes, fails, is_skipped, is_unclaimed, hangs, raises_its_own_timeout),
        bench=None,
        timeout_s=0.05,
        discard=discard,
    )
    told = []
    report = await kit.run(lambda result: told.append(result.name))
    assert told == [check.__name__ for check in kit.checks]
    assert [(result.outcome, result.detail) for result in report.results] == [
        (Outcome.PASSED, ""),
        (Outcome.FAILED, "seen"),
        (Outcome.SKIPPED, "has none"),
        (Outcome.UNCLAIMED, "cannot"),
        (Outcome.FAILED, "no end within 0.05 s"),
        (Outcome.FAILED, "TimeoutError: of the engine"),
    ]
    assert len(discarded) == 3 + 1
    assert report.counts == "1 passed, 3 failed, 1 skipped, 1 unclaimed"
    assert not report.is_ok


def test_an_error_is_placed_where_the_implementation_raised_it() -> None:
    class Broken:
        def answer(self) -> None:
            raise ValueError("no")

    def asks(bench: Broken) -> None:
        """A.\n\nB."""
        bench.answer()

    line = Broken.answer.__code__.co_firstlineno
    (asked,) = Kit(subject=Subject.of(Broken()), checks=(asks,), bench=Broken()).run_now().results
    assert asked.place == f"{__file__}:{line + 1}"
    assert asked.explanation.splitlines()[0] == "ValueError: no"
    assert Subject.of(Broken()).place == f"{__file__}:{line - 1}"
