"""Values that carry their own name, ours and other packages', as a mapping by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

__all__ = ["Named", "Registry"]

logger = logging.getLogger(__name__)


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Values by name: ours in their order, and behind them those of installed packages.

    Another package's is an entry point: its name is the value's, the value one of ``kind``. It takes no name of ours.
    One that cannot be used is left out, with a warning in the log, so that it hides no other. They are looked up when
    the registry is first used.

    Args:
        kind: Their type.
        group: Of the entry points.
        own: Ours.
    """

    def __init__(self, kind: type[T], group: str, own: Sequence[T]) -> None:
        self.kind = kind
        self.group = group
        self.own = tuple(own)

    def refresh(self) -> None:
        """Look for other packages' again, as after one was installed into a running process."""
        vars(self).pop("_values", None)

    @cached_property
    def _values(self) -> dict[str, T]:
        values = {value.name: value for value in self.own}
        if len(values) < len(self.own):
            raise ValueError(f"two of {self.group} have the same name: {', '.join(value.name for value in self.own)}")
        for entry in sorted(entry_points(group=self.group), key=lambda entry: entry.name):
            if entry.name in values:
                logger.warning("%s %s of %s is left out: the name is taken", self.group, entry.name, entry.value)
                continue
            try:
                value = entry.load()
            except Exception as error:  # one broken package must not hide the others
                logger.warning("%s %s of %s is left out: %s", self.group, entry.name, entry.value, error)
                continue
            if not isinstance(value, self.kind) or value.name != entry.name:
                wanted = f"a {self.kind.__name__} of this name"
                logger.warning("%s %s of %s is left out: it is not %s", self.group, entry.name, entry.value, wanted)
                continue
            values[value.name] = value
        return values

    def __getitem__(self, name: str) -> T:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
