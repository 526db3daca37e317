"""The one base of every settings class: what a field may hold is said where it is declared, and checked there.

    @dataclass(frozen=True)
    class MySettings(Settings):
        layer: BlockNumber
        rate: Positive = 0.1
        search: SearchSettings | None = None

Plain dataclasses, checked by pydantic, rather than pydantic's own classes: ``replace``, ``fields``, pickling and
construction by position are those of every dataclass, and mutable ones (EasyEdit's) are checked by the same function.

* :mod:`~corsa_plugins.settings.base`: the class: reading, presets, plain data;
* :mod:`~corsa_plugins.settings.ranges`: types of fields that many classes have;
* :mod:`~corsa_plugins.settings.checks`: what a field may hold;
* :mod:`~corsa_plugins.settings.words`: and how a message says it;
* :mod:`~corsa_plugins.settings.problems`: what is wrong, all of it at once, and what may have been meant;
* :mod:`~corsa_plugins.settings.reading`: YAML, JSON and plain data.
"""

from corsa_plugins.settings.base import Settings
from corsa_plugins.settings.checks import check_fields, missing_fields
from corsa_plugins.settings.problems import InvalidSettingsError, Problem, did_you_mean, unknown_names
from corsa_plugins.settings.ranges import BlockNumber, Count, NonNegative, NonNegativeInt, Positive, Share
from corsa_plugins.settings.reading import plain, read_mapping

__all__ = [
    "BlockNumber",
    "Count",
    "InvalidSettingsError",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "Problem",
    "Settings",
    "Share",
    "check_fields",
    "did_you_mean",
    "missing_fields",
    "plain",
    "read_mapping",
    "unknown_names",
]
