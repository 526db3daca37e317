"""What a source of facts is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from corsa_plugins.atlas.facts import Fact, Relation

__all__ = ["Source", "missing_packages"]


@dataclass(frozen=True)
class Source:
    """Facts out of an installed package.

    Attributes:
        package: The module it is imported as; of the extra ``real``.
        licence: Of the package.
        relations: Those it has facts of.
        facts: Gives them, those that more people know first.
    """

    package: str
    licence: str
    relations: tuple[Relation, ...]
    facts: Callable[[], list[Fact]]

    @property
    def installed(self) -> bool:
        """Whether the package is."""
        return find_spec(self.package) is not None


def missing_packages(sources: Iterable[Source]) -> Sequence[str]:
    """Names of the packages that are not installed."""
    return [source.package for source in sources if not source.installed]
