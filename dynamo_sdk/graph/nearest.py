"""What to say about a name that is not known: the nearest one that is, and all there are."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def suggest(name: str, known: Collection[str], *, noun: str = "known") -> str:
    """``; did you mean 'replicas'? (known: args, replicas)``, to be put behind what is wrong; without
    the question when nothing is near."""
    folded = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower(), folded, n=1)
    options = f" ({noun}: {', '.join(sorted(known)) or 'none'})"
    return f"; did you mean {folded[near[0]]!r}?{options}" if near else options
