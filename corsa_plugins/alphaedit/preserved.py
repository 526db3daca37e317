"""The preserved keys K0, as an editor asks for them: null spaces (AlphaEdit+ paper, 2.1) and samples (Eq. 3)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.weighed import everything, weighed
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PreservedKeys", "PreservedSpaces"]

logger = logging.getLogger(__name__)

_ANY = NullSpaceRule("share", 0.5)
"""To be asked with for the basis alone, where edits may write anywhere."""


class PreservedKeys(Protocol):
    """What an editor asks about K0; :class:`~corsa_plugins.alphaedit.KeyStatistics` answers it."""

    def check(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """Raise unless these are of this model."""

    def null_space(self, layer: int, rule: NullSpaceRule) -> NullSpace:
        """The null space of the preserved keys at a layer."""

    def sample(self, layer: int) -> Tensor | None:
        """Some of the preserved keys (d_in, S) of a layer, if kept."""


class PreservedSpaces:
    """The null spaces of preserved keys, each of them asked for once.

    Args:
        keys: ``None`` where none are known: whoever asks is told to give some.
    """

    def __init__(self, keys: PreservedKeys | None) -> None:
        self._known = keys
        self._spaces: dict[tuple[int, NullSpaceRule | None], NullSpace] = {}

    def null_space(self, layer: int, width: int, settings: AlphaEditSettings) -> NullSpace:
        """The null space of a layer whose keys are ``width`` wide, by the rule of the settings.

        Raises:
            SettingError: No keys are known, or those of the layer have another width.
        """
        key = (layer, settings.null_space)
        if key not in self._spaces:
            if settings.null_space is None:
                space = everything(self._keys().null_space(layer, _ANY))
            else:
                space = self._keys().null_space(layer, settings.null_space)
            if space.d != width:
                raise SettingError(f"layer {layer}: the statistics are {space.d} wide, and the keys {width}")
            if settings.search and not space.ordered:
                logger.warning(
                    "layer %d: the null space was given as a projector, which does not say in what order eigenvectors "
                    "could be added to it: none will be",
                    layer,
                )
            self._spaces[key] = space
        return self._spaces[key]

    def edit_space(self, layer: int, width: int, settings: AlphaEditSettings) -> NullSpace:
        """The same null space, with directions as long as the penalty of the settings makes them cheap.

        Raises:
            SettingError: As above, or the second moment that the penalty goes by is not known in full.
        """
        space = self.null_space(layer, width, settings)
        if settings.penalty == "weights":
            return space
        return weighed(space, settings.norm_weight, f"layer {layer}")

    def sample(self, layer: int) -> Tensor | None:
        """Some of the preserved keys (d_in, S) of a layer, if kept.

        Raises:
            SettingError: No keys are known.
        """
        return self._keys().sample(layer)

    def _keys(self) -> PreservedKeys:
        if self._known is None:
            raise SettingError("this editor has no statistics of the keys to preserve: give them to edit with it")
        return self._known
