"""Hyper-parameters of AlphaEdit+ in EasyEdit: those of EasyEdit's AlphaEdit, and those of the three parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from corsa_plugins.errors import SettingError
from easyedit_ext.hparams.base import HparamsError, HyperParams, check_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from corsa_plugins.alphaedit.settings import AlphaEditSettings
    from corsa_plugins.model.architecture import Architecture

__all__ = ["AlphaEditPlusHyperParams"]

T = TypeVar("T")

_NULL_SPACE = {"by": "nullspace_by", "value": "nullspace_threshold"}
_VALUES = {
    "steps": "v_num_grad_steps",
    "lr": "v_lr",
    "lr_unit": "v_lr_unit",
    "loss_layer": "v_loss_layer",
    "weight_decay": "v_weight_decay",
    "clamp": "clamp_norm_factor",
    "kl_factor": "kl_factor",
    "stop_loss": "v_stop_loss",
    "batch_size": "v_batch_size",
    "fact_token": "fact_token",
}
_SEARCH = {"threshold": "search_threshold", "block": "search_block", "limit": "search_limit"}
_SMOOTHING = {
    "steps": "smoothing_steps",
    "share": "smoothing_share",
    "threshold": "smoothing_threshold",
    "tolerance": "smoothing_tolerance",
    "selection": "smoothing_selection",
}
_EDITOR = {
    "ridge": "L2",
    "ridge_unit": "L2_unit",
    "prior_weight": "prior_weight",
    "prior_weight_by_layer": "prior_weight_by_layer",
    "conflict_weights": "conflict_weights",
    "validation_score": "validation_score",
    "n_contexts": "n_contexts",
    "context_length": "context_length",
    "reach": "reach",
    "batch_size": "edit_batch_size",
}
# The names of the core's settings, and of the fields here: EasyEdit's where it has one.


@dataclass(kw_only=True)
class AlphaEditPlusHyperParams(HyperParams):
    """A YAML file of EasyEdit's AlphaEdit loads after changing ``alg_name`` alone; the rest has the paper's values.

    Attributes:
        layers: The blocks whose FFN is edited, counted from 0, in ascending order.
        fact_token: Which token of the prompt an edit is looked up at; see
            :class:`corsa_plugins.alphaedit.values.search.ValueSettings`.
        v_num_grad_steps: Most evaluations of the loss of a value vector.
        v_lr: Adam's learning rate for it.
        v_lr_unit: ``"absolute"``, or ``"relative"`` to the size of the block's output.
        v_loss_layer: The block that the target is read from; ``None``: the model's own logits.
        v_weight_decay: Factor of its weight decay.
        v_stop_loss: The loss it stops at.
        v_batch_size: Value vectors optimised side by side.
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
            GPT-J, 1.4e-4 for LLaMA3 in the paper.
        search_block: Eigenvectors added and judged together; 10 in the published code.
        search_limit: The most to add; ``None``: all there are.
        smoothing: Part three: smooth the targets of requests of high inconsistency.
        smoothing_steps: T.
        smoothing_share: The share of a batch that is smoothed.
        smoothing_threshold: The residual norm above which a request is smoothed, in place of the share.
        smoothing_tolerance: delta, the change of the validation score that ends it.
        smoothing_selection: ``"early_stop"`` as in the paper, ``"best"`` as in the published code.
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
        mom2_dtype: Part of the name of EasyEdit's own statistics files.
        mom2_adjustment, mom2_update_weight, layer_selection, attn_module_tmp: Read so that EasyEdit's files load. They
            change nothing, as in EasyEdit's AlphaEdit.
    """

    METHOD: ClassVar[str] = "AlphaEditPlus"
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
    v_num_grad_steps: int = 25
    v_lr: float = 0.1
    v_lr_unit: str = "absolute"
    v_loss_layer: int | None = None
    v_weight_decay: float = 0.5
    v_stop_loss: float = 0.05
    v_batch_size: int = 16
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    mom2_adjustment: bool = True
    mom2_update_weight: float = 15000.0

    rewrite_module_tmp: str | None = None
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    stats_dir: str = "./data/stats"
    P_loc: str | None = None
    mom2_dataset: str = "wikipedia"
    mom2_n_samples: int = 100000
    mom2_n_tokens: int = 1_000_000
    mom2_dtype: str = "float32"
    nullspace_threshold: float = 0.02
    nullspace_by: str = "threshold"

    L2: float = 10.0
    L2_unit: str = "absolute"
    prior_weight: float = 100.0
    prior_weight_by_layer: bool = False
    conflict_weights: bool = True
    search: bool = True
    search_threshold: float = 1.4e-4
    search_block: int = 1
    search_limit: int | None = None
    smoothing: bool = True
    smoothing_steps: int = 10
    smoothing_share: float = 0.2
    smoothing_threshold: float | None = None
    smoothing_tolerance: float = 2e-4
    smoothing_selection: str = "early_stop"
    validation_score: str = "accuracy"
    contexts: list[str] | None = None
    n_contexts: int = 5
    context_length: int = 10
    reach: float = 0.5
    edit_batch_size: int = 64

    def check(self) -> None:
        super().check()
        if self.mom2_n_samples < 1 or self.mom2_n_tokens < 1:
            raise HparamsError("mom2_n_samples and mom2_n_tokens must be at least 1")
        if self.contexts is not None:
            from corsa_plugins.alphaedit.lookup.contexts import check_contexts

            try:
                check_contexts(self.contexts)
            except SettingError as error:
                raise HparamsError(str(error)) from error
        for name in ("rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp"):
            check_template(name, getattr(self, name))
        self.settings()

    def settings(self) -> AlphaEditSettings:
        """The settings of the editor.

        Raises:
            HparamsError: A value out of its range; the message names the field.
        """
        from corsa_plugins.alphaedit.settings import AlphaEditSettings
        from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
        from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
        from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
        from corsa_plugins.alphaedit.values.search import ValueSettings

        return self._make(
            AlphaEditSettings,
            _EDITOR,
            layers=tuple(self.layers),
            null_space=self._make(NullSpaceRule, _NULL_SPACE),
            values=self._make(ValueSettings, _VALUES),
            search=self._make(SearchSettings, _SEARCH) if self.search else None,
            smoothing=self._make(SmoothingSettings, _SMOOTHING) if self.smoothing else None,
        )

    @classmethod
    def from_settings(cls, settings: AlphaEditSettings, **fields: Any) -> Self:
        """The hyper-parameters of an editor's settings, for instance of a preset of ``corsa edit``.

        Args:
            settings: What :meth:`settings` gives back.
            **fields: The other fields, ``model_name`` and ``device`` among them.

        Raises:
            HparamsError: A field that is no field or is missing, or a setting that EasyEdit has no field for.
        """
        found: dict[str, Any] = {"layers": list(settings.layers)}
        for part, names in (
            (settings, _EDITOR),
            (settings.null_space, _NULL_SPACE),
            (settings.values, _VALUES),
            (settings.search, _SEARCH),
            (settings.smoothing, _SMOOTHING),
        ):
            if part is not None:
                found |= {field: getattr(part, own) for own, field in names.items()}
        found |= {"search": settings.search is not None, "smoothing": settings.smoothing is not None}
        twice = sorted(set(found) & set(fields))
        if twice:
            raise HparamsError(f"{', '.join(twice)}: already said by the settings, change it there")
        hparams = cls.from_dict({"alg_name": cls.METHOD, **found, **fields})
        if hparams.settings() != settings:
            raise HparamsError("dtype and values.reuse_prefix have no field here: leave them at their defaults")
        return hparams

    def _make(self, kind: Callable[..., T], names: Mapping[str, str], **more: Any) -> T:
        """An object of the core's from the fields in ``names`` (its own name -> ours); errors speak of ours."""
        try:
            return kind(**{own: getattr(self, field) for own, field in names.items()}, **more)
        except SettingError as error:
            text = str(error).removeprefix("null space: ")
            own = text.split(" is ", 1)[0]
            raise HparamsError(names.get(own, own) + text.removeprefix(own)) from error

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """Where the model's parts are: found, but for those whose names are given.

        Raises:
            ArchitectureError: A name that is not there, or a part that cannot be told.
        """
        from corsa_plugins.model.architecture import find_architecture

        return find_architecture(
            model,
            blocks=self.layer_module_tmp,
            ffn=self.mlp_module_tmp,
            down=self.rewrite_module_tmp,
            norm=self.ln_f_module,
            head=self.lm_head_module,
        )
