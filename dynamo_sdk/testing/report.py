"""What a conformance run found: one result per named check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import anyio

Case = TypeVar("Case")


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """``name`` of the check, the ``rule`` that it checks, and what was seen instead or why it was skipped."""

    name: str
    rule: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one implementation, in the order in which the checks ran."""

    subject: str
    results: tuple[CheckResult, ...]

    @property
    def is_ok(self) -> bool:
        """No check failed, and at least one passed."""
        outcomes = {result.outcome for result in self.results}
        return Outcome.PASSED in outcomes and Outcome.FAILED not in outcomes

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.outcome is Outcome.FAILED)

    def raise_if_failed(self) -> None:
        """Raise ``AssertionError`` with the whole report unless ``is_ok``."""
        if not self.is_ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        counts = ", ".join(
            f"{sum(result.outcome is outcome for result in self.results)} {outcome}" for outcome in Outcome
        )
        lines = [f"{self.subject}: {counts}"]
        for result in self.results:
            lines.append(f"  {result.outcome:<7} {result.name}")
            if result.detail:
                lines.append(f"          {result.detail}")
            if result.outcome is Outcome.FAILED:
                lines.append(f"          rule: {result.rule}")
        return "\n".join(lines)


class CheckFailed(AssertionError):
    """The implementation breaks the rule of a check."""


class NotApplicable(Exception):
    """The implementation has not what a check is about; the check is skipped."""


def require(condition: bool, message: str) -> None:
    """Fail the check with ``message`` unless ``condition``; unlike ``assert``, also under ``python -O``."""
    if not condition:
        raise CheckFailed(message)


async def run_checks(
    subject: str,
    checks: Iterable[Callable[[Case], Awaitable[None]]],
    case: Case,
    *,
    timeout_s: float,
    after_failure: Callable[[], Awaitable[None]] | None = None,
) -> Report:
    """Run each check once, each for at most ``timeout_s``. A check's name is its function's, its rule the
    first line of the docstring. ``after_failure`` replaces what a failed check may have left broken."""
    results = []
    for check in checks:
        outcome, detail = Outcome.PASSED, ""
        try:
            with anyio.fail_after(timeout_s) as deadline:
                await check(case)
        except NotApplicable as reason:
            outcome, detail = Outcome.SKIPPED, str(reason)
        except CheckFailed as failure:
            outcome, detail = Outcome.FAILED, str(failure)
        except TimeoutError as error:
            outcome = Outcome.FAILED
            detail = f"no end within {timeout_s:g} s" if deadline.cancel_called else _named(error)
        except Exception as error:
            outcome, detail = Outcome.FAILED, _named(error)
        results.append(_result(check, outcome, detail))
        if outcome is Outcome.FAILED and after_failure is not None:
            await after_failure()
    return Report(subject, tuple(results))


def run_checks_sync(subject: str, checks: Sequence[Callable[[Case], None]], case: Case) -> Report:
    """As ``run_checks``, for what is synchronous by contract."""
    results = []
    for check in checks:
        outcome, detail = Outcome.PASSED, ""
        try:
            check(case)
        except NotApplicable as reason:
            outcome, detail = Outcome.SKIPPED, str(reason)
        except CheckFailed as failure:
            outcome, detail = Outcome.FAILED, str(failure)
        except Exception as error:
            outcome, detail = Outcome.FAILED, _named(error)
        results.append(_result(check, outcome, detail))
    return Report(subject, tuple(results))


def subject_of(instance: object) -> str:
    """What a report calls an implementation: the import string of its class."""
    return f"{type(instance).__module__}:{type(instance).__qualname__}"


def _result(check: Callable[..., object], outcome: Outcome, detail: str) -> CheckResult:
    rule = " ".join((check.__doc__ or "").split())
    return CheckResult(name=check.__name__, rule=rule, outcome=outcome, detail=detail)


def _named(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return "; ".join(_named(inner) for inner in error.exceptions if isinstance(inner, Exception))
    return f"{type(error).__name__}: {error}"
