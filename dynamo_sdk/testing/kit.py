"""``Kit``: the checks of one kind, and one implementation to run them on.

A check is a function of the kit's bench. Its name is its function's; the first paragraph of its docstring
is the rule, the second says why the rule is there and what usually helps.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

from .places import Subject, place_of_failure
from .report import CheckFailed, CheckResult, NotApplicable, NotClaimed, Outcome, Report

Bench = TypeVar("Bench")


async def _nothing_to_discard() -> None: ...


@dataclass(slots=True, kw_only=True)
class Kit(Generic[Bench]):
    """``timeout_s`` is for one check. ``discard`` gives back what the bench has started; it is called after
    each failure, so that the next check does not meet what the last one left broken, and by ``close``."""

    subject: Subject
    checks: tuple[Callable[[Bench], Awaitable[None] | None], ...]
    bench: Bench
    timeout_s: float = 60.0
    discard: Callable[[], Awaitable[None]] = field(default=_nothing_to_discard)

    async def run(self, on_result: Callable[[CheckResult], None] = lambda result: None) -> Report:
        """Run each check once, in order. ``on_result`` is told each result as it comes."""
        results: list[CheckResult] = []
        try:
            for check in self.checks:
                results.append(await self.run_one(check))
                on_result(results[-1])
        finally:
            await self.close()
        return Report(self.subject.name, tuple(results))

    async def run_one(self, check: Callable[[Bench], Awaitable[None] | None]) -> CheckResult:
        """Run one check, for at most ``timeout_s``; never raises what the implementation raises."""
        result = await self._run(check)
        if result.outcome is Outcome.FAILED:
            with anyio.move_on_after(self.timeout_s):
                await self.discard()
        return result

    def run_now(self) -> Report:
        """``run`` for kinds that are synchronous by contract."""
        results: list[CheckResult] = []
        for check in self.checks:
            try:
                check(self.bench)
            except Exception as error:
                results.append(self._judge(check, error))
            else:
                results.append(self._judge(check, None))
        return Report(self.subject.name, tuple(results))

    async def close(self) -> None:
        """Give everything back, for at most ``timeout_s``. Idempotent."""
        with anyio.move_on_after(self.timeout_s):
            await self.discard()

    async def _run(self, check: Callable[[Bench], Awaitable[None] | None]) -> CheckResult:
        try:
            with anyio.fail_after(self.timeout_s) as deadline:
                under_way = check(self.bench)
                if under_way is not None:
                    await under_way
        except TimeoutError as error:
            if not deadline.cancel_called:
                return self._judge(check, error)
            late = CheckFailed(f"no end within {self.timeout_s:g} s")
            late.__traceback__ = error.__context__.__traceback__ if error.__context__ else None
            return self._judge(check, late)
        except Exception as error:
            return self._judge(check, error)
        return self._judge(check, None)

    def _judge(self, check: Callable[..., object], error: Exception | None) -> CheckResult:
        rule, advice = rule_and_advice(check)
        outcome, detail, place = Outcome.PASSED, "", None
        if isinstance(error, NotApplicable):
            outcome, detail = Outcome.SKIPPED, str(error)
        elif isinstance(error, NotClaimed):
            outcome, detail = Outcome.UNCLAIMED, str(error)
        elif error is not None:
            outcome, detail = Outcome.FAILED, _in_words(error)
            place = place_of_failure(error, self.subject)
        return CheckResult(
            name=check.__name__, rule=rule, advice=advice, outcome=outcome, detail=detail, place=place
        )


def rule_and_advice(check: Callable[..., object]) -> tuple[str, str]:
    """The two paragraphs of a check's docstring, each in one line."""
    rule, _, advice = (inspect.getdoc(check) or "").partition("\n\n")
    return " ".join(rule.split()), " ".join(advice.split())


def _in_words(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return "; ".join(_in_words(inner) for inner in error.exceptions)
    if isinstance(error, CheckFailed):
        return str(error)
    return f"{type(error).__name__}: {error}"
