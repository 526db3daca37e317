"""Hyper-parameters of AlphaEdit+ in EasyEdit: those of EasyEdit's AlphaEdit, and those of the three parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from corsa_plugins.settings import Count, InvalidSettingsError
from easyedit_ext.hparams.base import HparamsError, HyperParams, Template, hparams_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from corsa_plugins.alphaedit.settings import AlphaEditSettings
    from corsa_plugins.model.architecture import Architecture

__all__ = ["AlphaEditPlusHyperParams"]

_FIELDS: Mapping[str, str] = {
    "layers": "layers",
    "null_space.by": "nullspace_by",
    "null_space.value": "nullspace_threshold",
    "values.steps": "v_num_grad_steps",
    "values.lr": "v_lr",
    "values.lr_unit": "v_lr_unit",
    "values.loss_layer": "v_loss_layer",
    "values.weight_decay": "v_weight_decay",
    "values.clamp": "clamp_norm_factor",
    "values.kl_factor": "kl_factor",
    "values.stop_loss": "v_stop_loss",
    "values.batch_size": "v_batch_size",
    "values.memory": "v_memory",
    "values.fact_token": "fact_token",
    "values.chat_template": "chat_template",
    "ridge": "L2",
    "ridge_unit": "L2_unit",
    "prior_weight": "prior_weight",
    "prior_weight_by_layer": "prior_weight_by_layer",
    "conflict_weights": "conflict_weights",
    "search.threshold": "search_threshold",
    "search.block": "search_block",
    "search.limit": "search_limit",
    "search.rule": "search_rule",
    "search.weight": "search_weight",
    "smoothing.steps": "smoothing_steps",
    "smoothing.share": "smoothing_share",
    "smoothing.over_median": "smoothing_over_median",
    "smoothing.threshold": "smoothing_threshold",
    "smoothing.tolerance": "smoothing_tolerance",
    "smoothing.selection": "smoothing_selection",
    "subject_keys": "subject_keys",
    "neighbours.per_form": "neighbours_per_form",
    "neighbours.weight": "neighbours_weight",
    "neighbours.seed": "neighbours_seed",
    "validation_score": "validation_score",
    "n_contexts": "n_contexts",
    "context_length": "context_length",
    "reach": "reach",
    "batch_size": "edit_batch_size",
}
"""The core's settings, and the fields here: EasyEdit's names where it has one."""

_SWITCHES = ("search", "smoothing", "neighbours")
"""Parts of the core's settings that are there or not; switches here."""


@dataclass(kw_only=True)
class AlphaEditPlusHyperParams(HyperParams):
    """A YAML file of EasyEdit's AlphaEdit loads after changing ``alg_name`` alone; the rest has the paper's values.

    Attributes:
        layers: The blocks whose FFN is edited, counted from 0, in ascending order.
        fact_token: Which token of the prompt an edit is looked up at; see
            :class:`corsa_plugins.alphaedit.values.search.ValueSettings`.
        chat_template: Put prompts through the tokenizer's chat template, wherever an edit reads them; ``None``: as
            ``use_chat_template`` says, by which EasyEdit's evaluation asks them.
        v_num_grad_steps: Most evaluations of the loss of a value vector.
        v_lr: Adam's learning rate for it.
        v_lr_unit: ``"absolute"``, or ``"relative"`` to the size of the block's output.
        v_loss_layer: The block that the target is read from; ``None``: the model's own logits.
        v_weight_decay: Factor of its weight decay.
        v_stop_loss: The loss it stops at.
        v_batch_size: Value vectors optimised side by side; ``None``: as many as ``v_memory`` holds.
        v_memory: GiB of activations that they may hold; ``None``: as much as one request takes as EasyEdit runs it, or
            half of what is free on a GPU.
        clamp_norm_factor: Most norm of its change, in units of the norm of the block's output.
        kl_factor: Factor of the KL divergence that holds the subject's essence.
        nullspace_threshold: Which eigenvectors of the preserved keys' second moment are their null space.
        nullspace_by: How ``nullspace_threshold`` is meant: ``"threshold"`` on the eigenvalues as in AlphaEdit,
            ``"share"`` of the eigenvectors, or ``"energy"``, a share of the trace.
        L2: lambda.
        L2_unit: ``"absolute"``, or ``"relative"`` to the mean squared norm of the projected new keys.
        prior_weight: beta, the weight of earlier edits.
        prior_weight_by_layer: Multiply it by the place of the layer, as the published code does.
        conflict_weights: Part one: weigh earlier edits down where they conflict with the new ones.
        search: Part two: search for eigenvectors to add to the null space.
        search_threshold: epsilon, the relative gain that an eigenvector must bring: 3.0e-4 for GPT2-XL, 1.2e-4 for
            GPT-J, 1.4e-4 for LLaMA3 in the paper. ``None``: the price decides, on any model.
        search_block: Eigenvectors added and judged together; 10 in the published code.
        search_limit: The most to add; ``None``: all there are.
        search_rule: ``"graded"``, ``"price"`` or ``"threshold"``; ``None``: by the threshold if there is one, else
            graded.
        search_weight: Of what is preserved, where the price decides.
        smoothing: Part three: smooth the targets of requests of high inconsistency.
        smoothing_steps: T.
        smoothing_share: The share of a batch that may be smoothed.
        smoothing_over_median: How many times the median of the residual norms a norm must exceed; 0 in the paper.
        smoothing_threshold: The residual norm above which a request is smoothed, in place of both.
        smoothing_tolerance: delta, the change of the validation score that ends it.
        smoothing_selection: ``"early_stop"`` as in the paper, ``"best"`` as in the published code.
        subject_keys: Give the value also to the key of the subject with nothing before it. Not in the paper.
        neighbours: Hold the outputs at prompts about other subjects, which the model lists itself. Not in the paper.
        neighbours_per_form: The most for each wording.
        neighbours_weight: Of each against an edit.
        neighbours_seed: Of what the model lists.
        validation_score: ``"accuracy"`` or ``"probability"``, what decides between smoothed targets.
        contexts: Templates with one ``{}``, ``"{}"`` first, that keys and values are averaged over; ``None``: the model
            writes ``n_contexts`` of ``context_length`` tokens, the same every time.
        reach: A request is reported as out of reach if its value vector brings the target less probability than this.
        edit_batch_size: Prompts per forward pass where no gradients are taken.
        rewrite_module_tmp: Name of the FFN's last linear map with ``{}`` for the number of the block. This and the
            names below override what is found from how the model is built.
        layer_module_tmp: Of the block.
        mlp_module_tmp: Of the FFN.
        ln_f_module: Of the final norm.
        lm_head_module: Of the vocabulary head.
        stats_dir: Folder of the preserved keys' statistics; see :mod:`easyedit_ext.statistics`.
        P_loc: AlphaEdit's projector, ``null_space_project.pt``, where there are no statistics.
        mom2_dataset: What to collect them on where there is neither: wikipedia, wikitext, wikitext2, a file of text or
            JSON Lines, or a name on the Hugging Face Hub.
        mom2_n_samples: Documents to read for it.
        mom2_n_tokens: Tokens to read for it, at most.
        mom2_length: Tokens in a row of it; ``None``: 512, or what the model reads if that is less.
        mom2_pack: Put several documents into a row.
        mom2_dtype: Part of the name of EasyEdit's own statistics files.
        mom2_adjustment, mom2_update_weight, layer_selection, attn_module_tmp: Read so that EasyEdit's files load. They
            change nothing, as in EasyEdit's AlphaEdit.
    """

    METHOD: ClassVar[str] = "AlphaEditPlus"
    SETTINGS: ClassVar[str] = "corsa_plugins.alphaedit.settings:AlphaEditSettings"
    """The class of the core's settings, where it is."""
    FIELDS: ClassVar[Mapping[str, str]] = _FIELDS
    """Its settings, and the fields here that they come from."""
    FIXED: ClassVar[Mapping[str, Any]] = {}
    """Settings that have no field here: they make the method what it is."""
    PARTS: ClassVar[Mapping[str, str]] = {
        "blocks": "layer_module_tmp",
        "ffn": "mlp_module_tmp",
        "down": "rewrite_module_tmp",
        "norm": "ln_f_module",
        "head": "lm_head_module",
    }
    REMEDY: ClassVar[str | None] = None
    FOREIGN: ClassVar[Mapping[str, str]] = {
        "layer": "layers",
        "ridge": "L2",
        "lambda": "L2",
        "beta": "prior_weight",
        "epsilon": "search_threshold",
        "v_steps": "v_num_grad_steps",
        "clamp": "clamp_norm_factor",
    }

    layers: list[int]
    layer_selection: Literal["all", "random"] = "all"
    fact_token: str = "subject_last"
    chat_template: bool | None = None
    v_num_grad_steps: int = 25
    v_lr: float = 0.1
    v_lr_unit: str = "absolute"
    v_loss_layer: int | None = None
    v_weight_decay: float = 0.5
    v_stop_loss: float = 0.05
    v_batch_size: int | None = None
    v_memory: float | None = None
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    mom2_adjustment: bool = True
    mom2_update_weight: float = 15000.0

    rewrite_module_tmp: Template = None
    layer_module_tmp: Template = None
    mlp_module_tmp: Template = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    stats_dir: str = "./data/stats"
    P_loc: str | None = None
    mom2_dataset: str = "wikipedia"
    mom2_n_samples: Count = 100000
    mom2_n_tokens: Count = 1_000_000
    mom2_length: Count | None = None
    mom2_pack: bool = True
    mom2_dtype: str = "float32"
    nullspace_threshold: float = 0.02
    nullspace_by: str = "threshold"

    L2: float = 10.0
    L2_unit: str = "absolute"
    prior_weight: float = 100.0
    prior_weight_by_layer: bool = False
    conflict_weights: bool = True
    search: bool = True
    search_threshold: float | None = None
    search_block: int = 1
    search_limit: int | None = None
    search_rule: str | None = None
    search_weight: float = 16.0
    smoothing: bool = True
    smoothing_steps: int = 10
    smoothing_share: float = 0.2
    smoothing_over_median: float = 2.0
    smoothing_threshold: float | None = None
    smoothing_tolerance: float = 2e-4
    smoothing_selection: str = "best"
    subject_keys: bool = False
    neighbours: bool = False
    neighbours_per_form: int = 10
    neighbours_weight: float = 1.0
    neighbours_seed: int = 0
    validation_score: str = "probability"
    contexts: list[str] | None = None
    n_contexts: int = 5
    context_length: int = 10
    reach: float = 0.5
    edit_batch_size: int = 64

    def check(self) -> None:
        super().check()
        if self.contexts is not None:
            from corsa_plugins.alphaedit.lookup.contexts import check_contexts

            with hparams_errors():
                check_contexts(self.contexts)
        self.settings()

    def settings(self) -> AlphaEditSettings:
        """The settings of the editor.

        Raises:
            HparamsError: A value out of its range; the message names the field.
        """
        kind: Any = resolve_name(self.SETTINGS)
        data: dict[str, Any] = {part: {} if getattr(self, part) else None for part in _SWITCHES}
        values = {own: getattr(self, field) for own, field in self.FIELDS.items()}
        for own, value in {**self.FIXED, **values}.items():
            part, _, name = own.rpartition(".")
            settings = data.setdefault(part, {}) if part else data
            if settings is not None:
                settings[name] = value
        if self.chat_template is None:
            data["values"]["chat_template"] = self.use_chat_template or None
        with hparams_errors():
            try:
                settings = kind.from_dict(data)
            except InvalidSettingsError as error:
                raise error.renamed(self.FIELDS) from error
        return settings.of(settings) if hasattr(settings, "of") else settings

    @classmethod
    def from_settings(cls, settings: AlphaEditSettings, **fields: Any) -> Self:
        """The hyper-parameters of an editor's settings, for instance of a preset of ``corsa edit``.

        Args:
            settings: What :meth:`settings` gives back.
            **fields: The other fields, ``model_name`` and ``device`` among them.

        Raises:
            HparamsError: A field that is no field or is missing, or a setting that EasyEdit has no field for.
        """
        data = settings.as_dict()
        given: dict[str, Any] = {part: data[part] is not None for part in _SWITCHES}
        for own, field in cls.FIELDS.items():
            part, _, name = own.rpartition(".")
            values = data[part] if part else data
            if values is not None:
                given[field] = values[name]
        twice = sorted(set(given) & set(fields))
        if twice:
            raise HparamsError(f"{', '.join(twice)}: already said by the settings, change it there")
        hparams = cls.from_dict({"alg_name": cls.METHOD, **given, **fields})
        if hparams.settings() != settings:
            raise HparamsError("dtype and values.reuse_prefix have no field here: leave them at their defaults")
        return hparams

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """Where the model's parts are: found, but for those whose names are given.

        Raises:
            ArchitectureError: A name that is not there, or a part that cannot be told.
        """
        from corsa_plugins.model.architecture import find_architecture

        return find_architecture(model, **{part: getattr(self, name) for part, name in self.PARTS.items()})
