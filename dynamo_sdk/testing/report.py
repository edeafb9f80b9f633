"""What a conformance run found: one result per named check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNCLAIMED = "unclaimed"
    """The rule does not hold, and the implementation has said so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found.

    ``rule``: what must hold; ``advice``: why, and what usually helps. ``detail``: what was seen instead, why
    the check was skipped, or why the implementation does not claim it. ``place``: ``file:line`` of the
    implementation where a failure came from.
    """

    name: str
    rule: str
    advice: str
    outcome: Outcome
    detail: str = ""
    place: str | None = None

    @property
    def explanation(self) -> str:
        """A failure as its author needs it: what was seen, where, which rule, what to do."""
        lines = [self.detail, f"rule: {self.rule}", f"help: {self.advice}"]
        if self.place is not None:
            lines.insert(1, f"at:   {self.place}")
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one implementation, in the order in which the checks ran."""

    subject: str
    results: tuple[CheckResult, ...]

    @property
    def is_ok(self) -> bool:
        """No check failed, and at least one passed."""
        return self.num(Outcome.PASSED) > 0 and not self.failed

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return self.having(Outcome.FAILED)

    @property
    def skipped(self) -> tuple[CheckResult, ...]:
        return self.having(Outcome.SKIPPED)

    @property
    def counts(self) -> str:
        """``50 passed, 0 failed, 4 skipped``; and what is unclaimed, where there is such a thing."""
        shown = [outcome for outcome in Outcome if outcome is not Outcome.UNCLAIMED or self.num(outcome)]
        return ", ".join(f"{self.num(outcome)} {outcome}" for outcome in shown)

    def having(self, outcome: Outcome) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.outcome is outcome)

    def num(self, outcome: Outcome) -> int:
        return len(self.having(outcome))

    def raise_if_failed(self) -> None:
        """Raise ``AssertionError`` with the whole report unless ``is_ok``."""
        if not self.is_ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.counts}"]
        for result in self.results:
            lines.append(f"  {result.outcome:<9} {result.name}")
            text = result.explanation if result.outcome is Outcome.FAILED else result.detail
            lines += [f"          {line}" for line in text.splitlines()]
        return "\n".join(lines)


class CheckFailed(AssertionError):
    """The implementation breaks the rule of a check."""


class NotClaimed(Exception):
    """The implementation breaks the rule, and says by a fact of its own that it does; the message is its
    reason. A check raises this only after it has looked: what holds has passed, claimed or not."""


class NotApplicable(Exception):
    """The implementation has not what a check is about; the check is skipped."""


def require(condition: bool, message: str) -> None:
    """Fail the check with ``message`` unless ``condition``; unlike ``assert``, also under ``python -O``."""
    if not condition:
        raise CheckFailed(message)
