"""What the settings of every method of the family share: how they are made of those of another method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.alphaedit.auto import AUTO
from corsa_plugins.alphaedit.preserved import PreservedKeys
from corsa_plugins.methods.alphaedit import AlphaEditMethod
from corsa_plugins.methods.spec import Method

__all__ = ["FamilySettings", "method_of"]

_TAKEN = (
    "null_space", "values", "validation_score", "n_contexts", "context_length", "reach", "batch_size", "dtype",
)  # fmt: skip
"""What settings of another method say about the model, and not about the method."""


_PUBLISHED_STOP, _SURE_STOP = 0.05, 0.02
"""Where a rule takes some of an update away, answers that are just said are lost: values that would end earlier than
the published ones are looked for until they are sure."""


@dataclass(frozen=True)
class FamilySettings(AlphaEditSettings):
    """The settings of the editor with one method's defaults: a subclass names what is the method's own."""

    VALUES: ClassVar[Mapping[str, Any]] = {"stop_most_probable": 0}
    """Of the settings of values, what is the method's own."""

    @classmethod
    def of(cls, settings: AlphaEditSettings) -> AlphaEditSettings:
        """Settings for this method, from some that are the method's already or were found for another one.

        Of another one's are taken the layers, the null space, how values are looked for, and a ridge in relative units,
        which is the share of a lone edit that is left undone, whatever it is a penalty on. All else is this method's.

        Args:
            settings: Of AlphaEdit+, as they are chosen for a model, or of another method.
        """
        own = cls(layers=settings.layers[-1:])
        if type(settings) is not cls and _kind(settings) != _kind(own):
            given = {name: getattr(settings, name) for name in _TAKEN}
            if own.null_space is None:
                del given["null_space"]
            if settings.ridge_unit == "relative" and own.ridge:
                given |= {"ridge": settings.ridge, "ridge_unit": "relative"}
            values = {**given["values"].as_dict(), **cls.VALUES}
            if own.restraint is not None and values["stop_loss"] > _PUBLISHED_STOP:
                values["stop_loss"] = _SURE_STOP
            settings = cls.from_dict({**own.as_dict(), **given, "layers": cls.layers_of(settings), "values": values})
        return AlphaEditSettings(**{field.name: getattr(settings, field.name) for field in fields(AlphaEditSettings)})

    @classmethod
    def layers_of(cls, settings: AlphaEditSettings) -> tuple[int, ...]:
        """The layers that this method edits where another one has those of ``settings``."""
        return settings.layers

    @classmethod
    def read(cls, settings: AlphaEditSettings | str) -> AlphaEditSettings | str:
        """The settings themselves, for this method; ``"auto"`` is left as it is."""
        if isinstance(settings, str):
            return settings if settings == AUTO else cls.of(cls.load(settings))
        return cls.of(settings)


def _kind(settings: AlphaEditSettings) -> tuple[Any, ...]:
    """What tells methods apart, and no number that a user may want to change."""
    return (
        settings.penalty,
        settings.residuals,
        settings.prior_outputs,
        settings.restraint and settings.restraint.rule,
        settings.norm_anchor is None,
        settings.null_space is None,
        settings.one_at_a_time,
        settings.ridge == 0,
        settings.norm_weight > 0,
        settings.prior_weight > 0,
        settings.conflict_weights,
        settings.search is None,
        settings.smoothing is None,
        settings.subject_keys,
        settings.neighbours is None,
        settings.values.at,
        settings.values.stop_most_probable > 0,
    )


def method_of(name: str, kind: type[FamilySettings]) -> Callable[..., Method]:
    """What makes a method: the editor with settings of ``kind``.

    Args:
        name: For tables and labels.
        kind: Its settings.
    """

    def make(statistics: PreservedKeys, settings: AlphaEditSettings | str = AUTO) -> AlphaEditMethod:
        read: Any = kind.read(settings)
        return AlphaEditMethod(name, statistics, read, fitted=kind.of)

    return make
