"""What an edited model goes through afterwards: further training, rounding of its weights, merging with its base.

Each makes another model and leaves the one it is given as it is; there must be room for a second copy of it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from corsa_plugins.errors import SettingError, require
from corsa_plugins.methods.in_context.reader import InContextModel
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.batching import input_device, pad
from corsa_plugins.model.borrowing import frozen, random_state_kept
from corsa_plugins.model.parts import as_linear_map
from corsa_plugins.model.targets import fitted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TRIALS", "FurtherTraining", "Trial", "check_trials", "merged_copy", "round_weights", "trials"]

logger = logging.getLogger(__name__)

TRIALS = ("training", "int8", "int4", "merge")
"""What there is to survive, by name."""


@dataclass(frozen=True)
class Trial:
    """Something to survive.

    Attributes:
        name: In tables.
        key: Tells it from others of its name, as part of a file's name.
        change: Takes an edited model, which it leaves as it is, and gives another one.
    """

    name: str
    key: str
    change: Callable[[Any], Any] = field(repr=False)


_GROUP = 128


@dataclass(frozen=True)
class FurtherTraining:
    """Further training on other text: a LoRA adapter on every linear map but the head, as for CoRSA's
    ``all-linear`` (:mod:`corsa_plugins.model.targets`), merged when it is done.

    Attributes:
        texts: The text, at least one document.
        steps: Optimiser steps (AdamW, constant rate).
        batch_size: Rows of a step.
        length: Tokens of a row.
        rank: Of the adapter; its alpha is twice that.
        learning_rate: As it is.
        seed: Of the adapter's start.
    """

    texts: tuple[str, ...] = field(repr=False)
    steps: int = 50
    batch_size: int = 8
    length: int = 128
    rank: int = 8
    learning_rate: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length", "rank"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def key(self) -> str:
        """Tells it from any other."""
        told = [self.steps, self.batch_size, self.length, self.rank, self.learning_rate, self.seed, *self.texts]
        return hashlib.sha256("\0".join(map(str, told)).encode("utf-8", "surrogatepass")).hexdigest()[:8]


@torch.no_grad()
def merged_copy(model: Any) -> Any:
    """A copy of a model, with its adapter merged into the weights.

    Raises:
        SettingError: Its weights are quantised: there is no copy to be made of them.
    """
    if getattr(model, "is_quantized", False) or getattr(getattr(model, "config", None), "quantization_config", None):
        raise SettingError("--survive changes weights, and those of this model are quantised: load it unquantised")
    twin = copy.deepcopy(model)
    return twin.merge_and_unload() if hasattr(twin, "merge_and_unload") else twin


@torch.no_grad()
def round_weights(model: nn.Module, bits: int, group: int = _GROUP) -> int:
    """Round the weights of linear maps to the nearest of ``2^bits - 1`` levels, in place.

    Symmetric, group by group along the input: a group's levels are the multiples of its largest magnitude over
    ``2^(bits - 1) - 1``. Of a mixture's routed experts, whose weights lie in one parameter, each is rounded as the
    linear maps that it is. Embeddings, norms, biases and the head stay as they are, as weight-only quantisers leave
    them, and so does a router that is no ``nn.Linear``.

    Args:
        model: Any; the weights stay of their type.
        bits: At least 2.
        group: Inputs of a group; the last of a row may be smaller.

    Returns:
        How many maps were rounded, each expert's counted by itself.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    count = 0
    for name, module in model.named_modules():
        found = as_linear_map(name, module)
        if found is None or module is head:
            continue
        _round(found.weight, 2 ** (bits - 1) - 1, group)
        count += 1
    for weights in _expert_weights(model):
        for weight in weights:
            _round(weight, 2 ** (bits - 1) - 1, group)
            count += 1
    return count


def _expert_weights(model: nn.Module) -> Iterator[Tensor]:
    """Of every mixture whose routed experts share parameters of three axes: these, (E, d_out, d_in), up and down."""
    if not any(parameter.dim() == 3 for parameter in model.parameters()):
        return
    architecture = find_architecture(cast("PreTrainedModel", model))
    for layer in range(len(architecture.blocks)):
        mixture = architecture.mixture(layer)
        if mixture is None or mixture.listed:  # experts in a list are linear maps
            continue
        if mixture.fused is None:
            logger.warning("%s: its experts' weights cannot be told apart, and stay exact", mixture)
            continue
        for name in mixture.parameters:
            parameter = model.get_parameter(name)
            yield parameter.mT if mixture.fused.transposed else parameter


def _round(weight: Tensor, levels: int, group: int) -> None:
    """A weight (d_out, d_in), in place."""
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        values = part.float()
        step = values.abs().amax(dim=1, keepdim=True) / levels
        rounded = torch.where(step > 0, (values / step).round() * step, values)
        part.copy_(rounded)


def _train(model: Any, tokenizer: PreTrainedTokenizerBase, settings: FurtherTraining) -> Any:
    peft: Any = require("peft", "trl", what="--survive training")
    rows = list(islice(_rows(tokenizer, settings), settings.steps * settings.batch_size))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    with random_state_kept():
        torch.manual_seed(settings.seed)
        config = peft.LoraConfig(
            r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        wrapped = peft.get_peft_model(model, fitted(config, model, {}))
        parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
        with frozen(wrapped, parameters), torch.enable_grad():
            for start in range(0, len(rows), settings.batch_size):
                ids, mask = pad(rows[start : start + settings.batch_size], padding, side="right")
                device = input_device(wrapped)
                ids, mask = ids.to(device), mask.to(device)
                loss = wrapped(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        logger.info("further training: loss %.3f at the end", float(loss.detach()))
        return wrapped.merge_and_unload()


def _rows(tokenizer: PreTrainedTokenizerBase, settings: FurtherTraining) -> Iterable[list[int]]:
    """Rows of the text, again and again."""
    ids = [id for text in settings.texts for id in tokenizer(text)["input_ids"]]
    pieces = [ids[start : start + settings.length] for start in range(0, len(ids), settings.length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise SettingError("the text of further training has fewer than two tokens: give more (--survive-text)")
    return cycle(pieces)


def check_trials(names: Sequence[str], text: bool) -> None:
    """Refuse what cannot be.

    Args:
        names: Of :data:`TRIALS`, at least one.
        text: Whether there is a text for ``training``.

    Raises:
        SettingError: An unknown name, or training without a text.
        MissingExtraError: Training needs PEFT.
    """
    unknown = [name for name in names if name not in TRIALS]
    if unknown or not names:
        raise SettingError(f"--survive {', '.join(unknown) or 'nothing'}: name some of {', '.join(TRIALS)}")
    if "training" in names:
        if not text:
            raise SettingError("--survive training needs --survive-text: text that no edit is about")
        require("peft", "trl", what="--survive training")


def trials(
    names: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: FurtherTraining | None = None,
) -> list[Trial]:
    """What an edited model is to survive, in the order of :data:`TRIALS`.

    Args:
        names: Of :data:`TRIALS`.
        model: The base model, before any edit; for ``merge`` a copy of its weights is kept in main memory.
        tokenizer: Its tokenizer.
        training: For ``training``, which needs it.

    Raises:
        SettingError, MissingExtraError: As for :func:`check_trials`.
    """
    check_trials(names, training is not None)
    chosen: list[Trial] = []
    for name in (name for name in TRIALS if name in names):
        if name == "training":
            assert training is not None  # checked above
            change = partial(_trained, tokenizer=tokenizer, settings=training)
            chosen.append(Trial("further training", f"training {training.key}", change))
        elif name == "merge":
            base = {key: value.detach().cpu().clone() for key, value in model.named_parameters()}
            chosen.append(Trial("merging half-way with the base", "merge", partial(_half_way, base=base)))
        else:
            bits = int(name.removeprefix("int"))
            chosen.append(Trial(f"rounding to {bits} bits", name, partial(_rounded, bits=bits)))
    return chosen


def _changed(edited: Any, change: Callable[[Any], Any]) -> Any:
    """What ``change`` makes of a copy of a model; of one that reads stored edits, the model itself is changed."""
    if isinstance(edited, InContextModel):
        return edited.over(_changed(edited.base, change))
    return change(merged_copy(edited))


def _trained(edited: Any, tokenizer: PreTrainedTokenizerBase, settings: FurtherTraining) -> Any:
    return _changed(edited, lambda twin: _train(twin, tokenizer, settings))


def _rounded(edited: Any, bits: int) -> Any:
    def rounded(twin: Any) -> Any:
        round_weights(twin, bits)
        return twin

    return _changed(edited, rounded)


def _half_way(edited: Any, base: Mapping[str, Tensor]) -> Any:
    @torch.no_grad()
    def merged(twin: Any) -> Any:
        for name, parameter in twin.named_parameters():
            before = base[name].to(parameter.device, torch.float64)
            parameter.copy_((parameter.double() + before) / 2)
        return twin

    return _changed(edited, merged)
