"""All or nothing: the edited weights and the state that says what is in them change together, or not at all.

Whatever is raised meanwhile, Ctrl-C included, both are bit for bit as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from corsa_plugins.alphaedit.state import EditState, StateError
from corsa_plugins.alphaedit.weights import Held, Site, put_back, take
from corsa_plugins.model.architecture import LinearMap

__all__ = ["EditedWeights"]

logger = logging.getLogger(__name__)


class EditedWeights:
    """The weights of a model that edits are in, and which edits these are.

    Attributes:
        state: As of the last change.
        maps: The linear maps by layer: those that ``state`` knows, and those of which edits may come.
    """

    def __init__(self, state: EditState, maps: Mapping[Site, LinearMap]) -> None:
        self.state = state
        self.maps = dict(maps)

    def known_state(self) -> EditState:
        """The state, without edits that someone has taken back by restoring the weights.

        Raises:
            StateError: The weights are none that the state knows.
        """
        count = self._in_force()
        if count < len(self.state.batches):
            names = ", ".join(batch.name for batch in self.state.batches[count:])
            logger.warning(
                "the weights are those from before the batches %s: they are forgotten (apply() puts them back)", names
            )
            self.state = self.state.first(count)
        return self.state

    def apply(self) -> None:
        """Put every batch of the state into weights that have none, or the first few of them.

        Raises:
            StateError: The weights are none that the state knows.
        """
        if self._in_force() < len(self.state.batches):
            with self.intact():
                self.put(self.state)  # on another machine the same sum may round to other bits

    def put(self, state: EditState) -> None:
        """Write the weights as ``state`` has them, and make it the state; to be called where they are :meth:`intact`.

        They are computed from the state alone, so that what a later process writes has the same bits.
        """
        mark = state.write(self.maps)
        # One assignment: an interruption sees the edit made or not made.
        self.state = state.with_mark(mark)

    @contextmanager
    def intact(self) -> Iterator[Mapping[Site, Held]]:
        """Within the block, whatever is raised before the state is replaced: the weights are put back.

        Yields:
            Copies of the weights, by layer.
        """
        state = self.state
        weights = {layer: take(linear) for layer, linear in self.maps.items()}
        try:
            yield weights
        except BaseException:
            if self.state is state:
                _persist(lambda: self._put_back(weights))
            raise

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Whatever the block writes, the weights are as before afterwards."""
        with self.intact() as weights:
            yield
            self._put_back(weights)

    def _in_force(self) -> int:
        count = self.state.in_force(self.maps)
        if count is None:
            names = ", ".join(self.state.modules.values())
            raise StateError(
                f"the weights of {names} are neither what the last edit left nor what they were before one: something "
                "else changed them. Put them back, or start a new state, which takes them as the originals"
            )
        return count

    def _put_back(self, weights: Mapping[Site, Held]) -> None:
        for layer, weight in weights.items():
            put_back(self.maps[layer], weight)


def _persist(action: Callable[[], None]) -> None:
    """Do it to the end, whoever presses Ctrl-C meanwhile."""
    while True:
        try:
            return action()
        except KeyboardInterrupt:
            continue
