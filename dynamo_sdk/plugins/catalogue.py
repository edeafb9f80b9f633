"""All that is installed of one kind, by name; and what to say when a name is not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Generic, TypeVar

from dynamo_sdk.errors import ConfigError, PluginError

from .descriptors import Descriptor, Kind
from .known_distributions import how_to_install
from .problems import Problem, Source

D = TypeVar("D", bound=Descriptor)


class Catalogue(Mapping[str, D], Generic[D]):
    """A read-only mapping from name to descriptor, in the order of names.

    A name that two plugins offer is not in it: nobody can say which one is meant.
    """

    def __init__(
        self, kind: Kind, offers: Iterable[tuple[D, Source]], problems: Sequence[Problem] = ()
    ) -> None:
        self._kind = kind
        self._offers: dict[str, list[tuple[D, Source]]] = {}
        for descriptor, source in sorted(offers, key=lambda offer: offer[0].name):
            self._offers.setdefault(descriptor.name, []).append((descriptor, source))
        self._unique = {name: offers[0] for name, offers in self._offers.items() if len(offers) == 1}
        self._problems = tuple(problem for problem in problems if problem.is_fatal)

    def __getitem__(self, name: str) -> D:
        return self._unique[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unique)

    def __len__(self) -> int:
        return len(self._unique)

    def __repr__(self) -> str:
        return f"<{self._kind} catalogue: {', '.join(self) or 'empty'}>"

    def source(self, name: str) -> Source:
        """The plugin that offers ``name``; ``KeyError`` if there is not exactly one."""
        return self._unique[name][1]

    def offers(self) -> Iterator[tuple[D, Source]]:
        """All that is offered, doubled names too, in the order of names."""
        for offers in self._offers.values():
            yield from offers

    def doubled(self) -> dict[str, tuple[Source, ...]]:
        """The names that more than one plugin offers, and those plugins."""
        return {
            name: tuple(source for _, source in offers)
            for name, offers in self._offers.items()
            if len(offers) > 1
        }

    def require(self, name: str) -> D:
        """The descriptor of ``name``.

        Raises ``ConfigError`` for a name that nobody offers, and ``PluginError`` for one that is
        doubled, or that is missing while a plugin is broken.
        """
        if name in self._unique:
            return self._unique[name][0]
        if name in self._offers:
            owners = " and ".join(str(source) for _, source in self._offers[name])
            raise PluginError(
                f"{self._kind} {name!r} is offered twice, by {owners}; uninstall one of the distributions"
            )
        message = f"no {self._kind} {name!r} (installed: {', '.join(self) or 'none'})"
        if self._problems:
            broken = "; ".join(str(problem) for problem in self._problems)
            raise PluginError(f"{message}; broken: {broken}; see: dynamo-sdk plugins")
        if self._kind is Kind.ENGINE and (command := how_to_install(name)):
            raise ConfigError(f"{message}; try: {command}")
        close = get_close_matches(name, self, n=1)
        if close:
            raise ConfigError(f"{message}; did you mean {close[0]!r}?")
        raise ConfigError(f"{message}; install the plugin that offers it, or write one (docs/plugins.md)")
