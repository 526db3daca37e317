"""R-SFT merged by mergekit, as an editing method of :mod:`corsa_plugins.methods`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.merging.recipe import delta_recipe
from corsa_plugins.methods.effect import Effect, effect_of, warn_if_few, write_report
from corsa_plugins.methods.rsft import RSFTMethod, merged_settings, settings_in_form
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.rsft import RSFTSettings
from corsa_plugins.rsft.density import least_density
from corsa_plugins.rsft.report import undone_in_words
from corsa_plugins.rsft.selection import trainable_parameters
from corsa_plugins.rsft.weights import TrainedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.methods.spec import Session

__all__ = ["RSFTMergekitMethod", "rsft_mergekit"]

RECIPE = "recipe.yaml"
_MERGED = "merged.safetensors"


@dataclass(frozen=True)
class RSFTMergekitMethod:
    """R-SFT, whose second stage is a recipe that mergekit carries out.

    The result is that of ``rsft-merged``, which merges in memory: bit for bit for a model in float32; of one in lower
    precision mergekit reads the edited weights as rounded, where the merge in memory has them in float32. This is the
    way of those who merge by recipes anyway, and takes room on disk for three copies of the model while it merges. The
    recipe stays with the update.

    Attributes:
        name: For tables and labels.
        settings: Of R-SFT; ``weight`` and ``density`` are those of the recipe. A recipe has a number: of ``"auto"`` it
            is found before, by merging in memory.
        shared: A folder of trainings that R-SFT may have made or may want (:meth:`RSFTMethod.sharing`).
    """

    name: str = "R-SFT, merged by mergekit"
    settings: RSFTSettings = field(default_factory=lambda: RSFTSettings(weight=0.8, density=0.2))
    shared: Path | None = None

    def describe(self) -> dict[str, Any]:
        """The settings, without ``shared``: sharing changes nothing."""
        return {"method": "R-SFT, mergekit", "name": self.name, "settings": asdict(self.settings)}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """Copies what will train; ``seed`` is not needed, as the settings have their own for the samples' order."""
        return _Session(model, tokenizer, self)

    def in_form(self, chat_template: bool) -> RSFTMergekitMethod:
        """With prompts in this form, unless the settings say in which."""
        return replace(self, settings=settings_in_form(self.settings, chat_template))

    def sharing(self, folder: Path) -> RSFTMergekitMethod:
        """With the first stage from a folder of trainings that several methods share."""
        return replace(self, shared=folder)


class _Session:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: RSFTMergekitMethod) -> None:
        # Here, so that the first update is not charged for mergekit's import.
        from mergekit.options import MergeOptions

        from mergekit_ext.merging import merge_recipe

        self.model = model
        self._tokenizer = tokenizer
        self._settings = settings = method.settings
        self._merge = partial(merge_recipe, options=MergeOptions(quiet=True))
        first_stage = RSFTMethod("first stage", replace(settings, weight=1.0, density=1.0), shared=method.shared)
        self._first_stage = first_stage.start(model, tokenizer, seed=0)

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        from safetensors.torch import save_file

        models = folder / "models"
        self._save(models / "base")
        chosen = self._settings.density
        weights = TrainedWeights(trainable_parameters(self.model, self._settings)) if chosen == "auto" else None
        self._first_stage.update(requests, folder)
        self._save(models / "edited")
        density = self._least_density(requests, weights) if weights else float(chosen)
        recipe = delta_recipe(models / "base", models / "edited", self._settings.weight, density)
        (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        self._merge(folder / RECIPE, models / "merged")
        # Read as a model, not as a file: what a parameter is called there is up to transformers.
        merged = type(self.model).from_pretrained(models / "merged", dtype="auto")
        names = trainable_parameters(self.model, self._settings)
        values = {name: p.detach().contiguous() for name, p in merged.named_parameters() if name in names}
        save_file(values, folder / _MERGED)
        shutil.rmtree(models)
        self._put(values)
        self._report(requests, density, folder)

    def _least_density(self, requests: Sequence[EditRequest], weights: TrainedWeights) -> float:
        """Of ``"auto"``, by merging in memory; the model is left merged."""
        trained = [p.detach().to("cpu", copy=True) for p in weights.parameters.values()]

        def said(density: float) -> int:
            weights.merge(self._settings.weight, density, trained)
            return self._effect(requests).taken

        return least_density(said, self._effect(requests).taken)[0]

    def restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self._put(load_file(folder / _MERGED))

    def close(self) -> None:
        self._first_stage.close()

    def _report(self, requests: Sequence[EditRequest], density: float, folder: Path) -> None:
        """In the place of the first stage's report: which requests are said now, and which the merge undid."""
        trained = self._first_stage.report
        assert trained is not None, "the first stage has been made"
        effect = self._effect(requests)
        pairs = list(zip(trained.samples, effect.requests, strict=True))
        undone = sum(sample.said and not request.taken for sample, request in pairs)
        cause = (
            undone_in_words(undone, self._settings.weight, density, auto=self._settings.density == "auto")
            if undone
            else "not learned; see the first stage"
        )
        text = effect.sentence("said", cause)
        warn_if_few(effect, text)
        write_report(effect.as_dict(text), folder)

    def _effect(self, requests: Sequence[EditRequest]) -> Effect:
        return effect_of(self.model, self._tokenizer, requests, chat_template=bool(self._settings.chat_template))

    def _save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in trainable_parameters(self.model, self._settings).items():
            parameter.copy_(values[name])


def _rsft_mergekit(settings: RSFTSettings | str | None = None) -> RSFTMergekitMethod:
    for name in ("mergekit", "mergekit.merge"):  # its notices of every tensor are not about an update
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger(name).level))
    return RSFTMergekitMethod(settings=merged_settings(settings))


rsft_mergekit = MethodSpec(
    name="rsft-mergekit",
    title="R-SFT, merged by mergekit",
    summary="as rsft-merged and with the same settings, by a recipe that mergekit carries out",
    source="Model Merging for Knowledge Editing, Eq. 6",
    make=_rsft_mergekit,
    settings=RSFTSettings,
    extra="mergekit",
    rank=80,
    demo=True,
)
