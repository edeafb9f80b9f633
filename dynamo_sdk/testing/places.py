"""Where in somebody's implementation a failure came from, so that its author can jump there."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_KIT = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked: ``name`` is the import string of its class, which begins in ``file`` at ``line``."""

    name: str
    file: str | None = None
    line: int | None = None

    @classmethod
    def of(cls, instance: object) -> Self:
        """The subject that ``instance`` is one of."""
        kind = type(instance)
        try:
            file, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
        except (OSError, TypeError):  # made at run time, or written in C
            file, line = None, None
        return cls(name=f"{kind.__module__}:{kind.__qualname__}", file=file, line=line)

    @property
    def place(self) -> str | None:
        return None if self.file is None else f"{self.file}:{self.line}"


def place_of_failure(error: BaseException, subject: Subject) -> str | None:
    """``file:line`` of the last call that the implementation made, or of its class where it only answered
    wrongly."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return place_in(traceback.extract_tb(error.__traceback__), subject)


def place_in(stack: traceback.StackSummary, subject: Subject) -> str | None:
    """``file:line`` of the innermost call that is the implementation's, else of its class."""
    if subject.file is None:
        return None
    for frame in reversed(stack):
        if _is_of(Path(frame.filename), Path(subject.file)):
            return f"{frame.filename}:{frame.lineno}"
    return subject.place


def _is_of(file: Path, subject_file: Path) -> bool:
    """Whether ``file`` lies beside the implementation or below, and is neither a library nor this kit."""
    if file == subject_file:
        return True
    folder = subject_file.parent
    if not file.is_relative_to(folder) or file.parent == _KIT:
        return False
    return "site-packages" not in file.relative_to(folder).parts
