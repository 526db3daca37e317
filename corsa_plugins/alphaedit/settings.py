"""The settings of AlphaEdit+ and AlphaEdit, with the paper's values as defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.search import ValueSettings
from corsa_plugins.errors import SettingError

__all__ = ["AlphaEditSettings", "RidgeUnit", "ValidationScore", "preset_names"]

RidgeUnit = Literal["absolute", "relative"]
ValidationScore = Literal["accuracy", "probability"]

_PARTS: dict[str, type] = {
    "null_space": NullSpaceRule,
    "values": ValueSettings,
    "search": SearchSettings,
    "smoothing": SmoothingSettings,
}


@dataclass(frozen=True)
class AlphaEditSettings:
    """What is edited and how. AlphaEdit is this editor with the three parts of AlphaEdit+ off: :meth:`alphaedit`.

    Attributes:
        layers: The blocks whose FFN down map is edited, counted from 0, in ascending order. The residual is spread over
            them as in MEMIT: layer i of L, counted from 0, takes 1 / (L - i) of what is left.
        null_space: Which eigenvectors of the preserved keys' second moment count as their null space. The papers use an
            absolute threshold, which does not carry over from one model to another; a share does.
        values: How v* is found.
        ridge: lambda of Eq. 1 and 7.
        ridge_unit: ``"absolute"``: lambda itself, 10 in the paper. ``"relative"``: in units of the mean squared norm of
            the projected new keys, which is what lambda is weighed against (Lemma 1): 0.1 leaves about a tenth
            of a lone edit's residual, on any model.
        prior_weight: beta, the weight of earlier edits (appendix A.5): 100 in the paper's experiments, 1 in AlphaEdit.
        prior_weight_by_layer: Multiply beta by the 1-based place of the layer among ``layers``, as the published code
            does.
        conflict_weights: Weight each earlier edit by 1 - its conflict with the new ones (Lambda_p of Eq. 7).
        search: The search for eigenvectors to add to the null space (Algorithm 1, lines 4-10); ``None``: none is made.
        smoothing: Smoothed targets for requests of high inconsistency (lines 11-20); ``None``: none are.
        validation_score: What decides between smoothed targets, over the validation prompts: ``"accuracy"``, the share
            whose every target token is the most likely one; ``"probability"``, the mean probability of the target, the
            geometric mean over its tokens, which also moves when no answer flips.
        n_contexts: Number of generated contexts that keys and values are averaged over, beside the bare prompt.
        context_length: Length of each, in tokens.
        reach: A request counts as out of reach if with its v* in place the target's probability is below this.
        batch_size: Prompts per forward pass where no gradients are taken.
        dtype: Of stored keys and factors: ``"float32"`` or ``"float64"``; what is inverted is float64 either way.
            ``None``: float64 for float64 weights, float32 for all others.
    """

    layers: tuple[int, ...]
    null_space: NullSpaceRule = field(default_factory=NullSpaceRule)
    values: ValueSettings = field(default_factory=ValueSettings)
    ridge: float = 10.0
    ridge_unit: RidgeUnit = "absolute"
    prior_weight: float = 100.0
    prior_weight_by_layer: bool = False
    conflict_weights: bool = True
    search: SearchSettings | None = field(default_factory=SearchSettings)
    smoothing: SmoothingSettings | None = field(default_factory=SmoothingSettings)
    validation_score: ValidationScore = "accuracy"
    n_contexts: int = 5
    context_length: int = 10
    reach: float = 0.5
    batch_size: int = 64
    dtype: Literal["float32", "float64"] | None = None

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            optional = name in ("search", "smoothing")
            if not (isinstance(value, kind) or (optional and value is None)):
                raise SettingError(f"{name} is {value!r}: give a {kind.__name__}{', or None' if optional else ''}")
        layers = self.layers
        if not isinstance(layers, list | tuple) or not layers or not all(_is_int(i) and i >= 0 for i in layers):
            raise SettingError(f"layers is {layers!r}: name the blocks to edit by their numbers, counted from 0")
        if list(layers) != sorted(set(layers)):
            raise SettingError(f"layers is {layers!r}: name each block once, in ascending order")
        object.__setattr__(self, "layers", tuple(layers))
        self._require("ridge", _is_number(self.ridge) and self.ridge > 0, "a number over 0")
        self._require("prior_weight", _is_number(self.prior_weight) and self.prior_weight >= 0, "a number, 0 or more")
        self._require("ridge_unit", self.ridge_unit in get_args(RidgeUnit), "absolute or relative")
        self._require("validation_score", self.validation_score in get_args(ValidationScore), "accuracy or probability")
        for name in ("conflict_weights", "prior_weight_by_layer"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require("n_contexts", _is_int(self.n_contexts) and self.n_contexts >= 0, "an integer, 0 or more")
        for name in ("context_length", "batch_size"):
            self._require(name, _is_int(getattr(self, name)) and getattr(self, name) >= 1, "an integer of at least 1")
        self._require("reach", _is_number(self.reach) and 0 <= self.reach <= 1, "a probability")
        self._require("dtype", self.dtype in (None, "float32", "float64"), "float32, float64 or None")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise SettingError(f"{name} is {getattr(self, name)!r}: it must be {wanted}")

    def alphaedit(self) -> AlphaEditSettings:
        """The same with the three parts off and beta 1: AlphaEdit, with this null space, ridge and these values."""
        return replace(self, conflict_weights=False, search=None, smoothing=None, prior_weight=1.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back to an equal object, also through JSON or YAML."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AlphaEditSettings:
        """The settings of a mapping as in the YAML files: the parts are mappings of their own.

        Raises:
            SettingError: An unknown or a missing setting, or a value that cannot be; the message names it.
        """
        _refuse_unknown(data, {part.name for part in fields(cls)}, "")
        if "layers" not in data:
            raise SettingError("layers is missing: name the blocks to edit, for instance layers: [4, 5, 6, 7, 8]")
        arguments = dict(data)
        for name, kind in _PARTS.items():
            part = arguments.get(name)
            if isinstance(part, Mapping):
                _refuse_unknown(part, {f.name for f in fields(kind)}, f"{name}.")
                try:
                    arguments[name] = kind(**part)
                except SettingError as error:
                    raise SettingError(f"{name}: {error}") from error
        return cls(**arguments)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the settings that ship with the package, for :meth:`load`."""
        return tuple(preset_names())

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> AlphaEditSettings:
        """Settings from a YAML file, or one of the presets by name (:func:`preset_names`).

        Raises:
            SettingError: There is no such file or preset, or it cannot be read; the message names it.
        """
        import yaml

        path = Path(name_or_path).expanduser()
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise SettingError(f"settings {name_or_path} is not UTF-8 text: {error}") from None
        elif os.fspath(name_or_path) in preset_names():
            text = (_presets() / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        else:
            raise SettingError(
                f"settings {name_or_path}: no such file, nor a preset; the presets are {', '.join(preset_names())}"
            )
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingError(f"settings {name_or_path} is not YAML: {error}") from error
        if not isinstance(data, Mapping):
            raise SettingError(f"settings {name_or_path}: it should be a mapping of settings, such as layers: [4, 5]")
        try:
            return cls.from_dict(data)
        except SettingError as error:
            raise SettingError(f"settings {name_or_path}: {error}") from error


def preset_names() -> list[str]:
    """Names of the settings that ship with the package, for :meth:`AlphaEditSettings.load`."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def _presets() -> Any:
    return files("corsa_plugins.alphaedit") / "presets"


def _refuse_unknown(data: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the settings are {', '.join(sorted(known))}"
            raise SettingError(f"unknown setting {prefix}{name}: {hint}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
