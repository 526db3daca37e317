"""Which model is measured, and against what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from corsa_plugins.alphaedit.edited import load_edited
from corsa_plugins.bench.evaluation import Evaluation
from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Where
from corsa_plugins.paths import user_path

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """Which model is measured, and against what.

    Attributes:
        model: A folder, or a name on the Hub.
        adapter: A PEFT adapter to put on it.
        edited: This edited model instead, or a folder written by ``corsa edit``.
        baseline: What to compare with: a model, or a folder of saved results.
        label: What to call what is measured; by default the name of the adapter, the edited model or the model.

    Raises:
        SettingError: Both an adapter and an edited model.
    """

    model: str
    adapter: str | None = None
    edited: str | None = None
    baseline: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.edited and self.adapter:
            raise SettingError(
                "--edited and --adapter: give one; an adapter of an edited model goes with --model EDITED"
            )

    def labels(self, saved: Evaluation | None = None) -> tuple[str, str]:
        """What to call what is measured, and the baseline; ``saved`` is what is in its folder, if it is one."""
        measured = self.adapter or self.edited or self.model
        own = self.label or _name(measured)
        if not self.baseline:
            return own, ""
        other = saved.label if saved else _name(self.baseline)
        if other == own and not saved and not self.label:  # such as world/model and edited/model
            own, other = _name(measured, of_parent=True), _name(self.baseline, of_parent=True)
        return own, f"{other} (baseline)" if other == own else other

    def load(self, device: Where = None, dtype: str = "auto") -> tuple[Any, Any]:
        """The model that is measured, and its tokenizer.

        Raises:
            LoadingError, SettingError, StateError: As for
                :func:`~corsa_plugins.model.loading.load_model` and :func:`~corsa_plugins.alphaedit.edited.load_edited`.
        """
        if self.edited:
            return load_edited(self.model, self.edited, device=device, dtype=dtype)
        return load_model(self.model, self.adapter, device=device, dtype=dtype)


def _name(path_or_hub: str, of_parent: bool = False) -> str:
    """What a model or an adapter is called; that of ``.`` is the folder's. With its parent's: ``world/model``."""
    path = user_path(path_or_hub)
    path = path.resolve() if path.name in ("", "..") else path
    return "/".join(part for part in (path.parent.name if of_parent else "", path.name) if part)
