"""Which model it is, so that what was made of one is never used with another.

A :class:`Fingerprint` is of a checkpoint, which it knows through edits and in any precision: statistics and edit states
are bound to it. :func:`model_key` is of the very weights, adapters and vocabulary that answer: answers are bound to it.
The rest are digests of parts: of a weight's bits, of the tensors of a delta, of a vocabulary.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from corsa_plugins.model.quantised import plain_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Fingerprint", "FingerprintError", "checksum", "model_key", "tensors_digest", "vocabulary_digest"]

_SAMPLES = 16  # values of each parameter
_RELATIVE = 2.0**-8  # bfloat16 rounds by up to 2**-9, float16 by 2**-11; one model may have seen either
_ABSOLUTE = 2.0**-24  # the smallest step of float16, which rounds by half of it near zero
_NAMED = 3
_AT_ONCE = 2**24  # elements of a weight that are copied at a time


class FingerprintError(CorsaError, ValueError):
    """A fingerprint that cannot be taken or read."""


@dataclass(frozen=True)
class Fingerprint:
    """A model's type, the names and shapes of its parameters, and a few values of each.

    Left out are the values of the FFNs' down maps, which is what editing changes: an edited model has the fingerprint
    of the original. What is compared survives rounding, so the same checkpoint in float32, bfloat16 or float16, on
    any device, matches. Any sampled value that rounding cannot explain (a relative change of 2^-8 and more) makes
    another model of it. Changes that are smaller everywhere, or few and between the samples, go unnoticed; quantised
    weights, told by the tensors they are stored as, match nothing but themselves.

    Attributes:
        model_type: As the configuration says, for instance ``"llama"``.
        shapes: Of every parameter, by name.
        values: Up to 16 values, evenly spread, of every parameter but the down maps' weights.
        name: Where the model came from, for messages; never compared.
    """

    model_type: str
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[float, ...]]
    name: str = field(default="", compare=False)

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture | None = None) -> Fingerprint:
        """The fingerprint of ``model``; reads a few values of each parameter, so it is cheap at any size.

        Args:
            model: A causal language model without an adapter.
            architecture: Where its parts are, if they had to be named by hand.

        Raises:
            ArchitectureError: The model's blocks cannot be told, or it has an adapter.
            FingerprintError: A parameter is not in memory, or holds NaN or infinity.
        """
        edited = _down_weights(architecture or find_architecture(model))
        shapes: dict[str, tuple[int, ...]] = {}
        values: dict[str, tuple[float, ...]] = {}
        for name, parameter in plain_values(model):
            shapes[name] = tuple(parameter.shape)
            if name not in edited and parameter.numel():
                values[name] = _sample(name, parameter.detach())
        config: Any = model.config
        return cls(str(config.model_type), shapes, values, str(getattr(config, "_name_or_path", "") or ""))

    def difference(self, other: Fingerprint, besides: Collection[str] = ()) -> str | None:
        """What tells ``other`` from this one, for a message; ``None`` if they are of the same model.

        Args:
            other: The other.
            besides: Names of parameters whose values are not compared.
        """
        if self.model_type != other.model_type:
            return f"other architecture: {self.model_type} and {other.model_type}"
        if self.shapes != other.shapes:
            changed = [name for name in {**self.shapes, **other.shapes} if not _same_shape(name, self, other)]
            name = changed[0]
            shapes = " and ".join(_shape(name, model) for model in (self, other))
            return f"other architecture: {name} is {shapes}{_more(len(changed) - 1, 'parameters differ')}"
        shared = [name for name in self.values if name in other.values and name not in besides]
        if self.shapes and not shared:
            return "no weights to compare"
        return self._other_weights(other, shared)

    def contradiction(self, other: Fingerprint) -> str | None:
        """What tells ``other`` from this one among the parameters that both have in one shape, for a message; ``None``
        if nothing does. So a quantised model is compared with the original in what was not quantised."""
        both = [name for name in self.values if name in other.values and _same_shape(name, self, other)]
        return self._other_weights(other, both)

    def _other_weights(self, other: Fingerprint, names: Sequence[str]) -> str | None:
        changed = [name for name in names if not _close(self.values[name], other.values[name])]
        if not changed:
            return None
        shown = ", ".join(changed[:_NAMED])
        return f"other weights in {shown}{_more(len(changed) - _NAMED, 'parameters differ')}"

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are of the same model, whatever the precision it was in."""
        return self.difference(other) is None

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits. Equal digests are of equal fingerprints; the same model in another precision
        may have another digest and still match."""
        text = json.dumps([self.model_type, sorted(self.shapes.items())])
        content = hashlib.sha256(text.encode())
        for name in sorted(self.values):
            content.update(name.encode() + _pack(self.values[name]))
        return content.hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.name or 'a model'} ({self.model_type}, {self.digest})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a few hundred bytes per block."""
        return {
            "model_type": self.model_type,
            "name": self.name,
            "digest": self.digest,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "values": {name: base64.b64encode(_pack(values)).decode() for name, values in self.values.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of :meth:`as_dict`.

        Raises:
            FingerprintError: This is no fingerprint, or a damaged one.
        """
        try:
            read = cls(
                str(data["model_type"]),
                {str(name): tuple(int(size) for size in shape) for name, shape in data["shapes"].items()},
                {str(name): _unpack(text) for name, text in data["values"].items()},
                str(data["name"]),
            )
            digest = data["digest"]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FingerprintError(f"not the fingerprint of a model: {type(error).__name__} {error}") from error
        if read.digest != digest:
            raise FingerprintError(f"the fingerprint is damaged: its digest is {read.digest}, {digest} was written")
        return read


def _down_weights(architecture: Architecture) -> set[str]:
    """Names of the parameters that editing changes."""
    weights = set()
    for layer in range(len(architecture.blocks)):
        try:
            edited = architecture.edited(layer)
        except ArchitectureError:  # nothing there that could be edited
            continue
        weights.add(f"{edited.name}.{edited.stored}")
    return weights


def _sample(name: str, parameter: Tensor) -> tuple[float, ...]:
    if parameter.is_meta:
        raise FingerprintError(f"{name} is not in memory: load the model by accelerate's device maps, or without")
    flat = parameter.reshape(-1)
    last = flat.numel() - 1
    count = min(_SAMPLES, flat.numel())
    spread = [last * index // max(count - 1, 1) for index in range(count)]
    # float32 is what is stored; a float64 model is rounded to it.
    values = flat[torch.tensor(spread, device=flat.device)].to(torch.float32).cpu()
    if not values.isfinite().all():
        raise FingerprintError(f"{name} holds NaN or infinity: the model is damaged, load it anew")
    return tuple(values.tolist())


def _close(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    # Element by element: rounding is relative to each, and small weights show a change first.
    return len(first) == len(second) and all(
        abs(a - b) <= _RELATIVE * max(abs(a), abs(b)) + _ABSOLUTE for a, b in zip(first, second, strict=True)
    )


def _same_shape(name: str, first: Fingerprint, second: Fingerprint) -> bool:
    return first.shapes.get(name) == second.shapes.get(name)


def _shape(name: str, model: Fingerprint) -> str:
    shape = model.shapes.get(name)
    if any(part.startswith(f"{name}.") for part in model.shapes):  # as quantised weights are stored
        return "quantised"
    return "missing" if shape is None else " x ".join(map(str, shape)) or "one number"


def _more(count: int, what: str) -> str:
    return f"; {count} more {what}" if count > 0 else ""


def _pack(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _unpack(text: str) -> tuple[float, ...]:
    content = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(content) // 4}f", content[: len(content) // 4 * 4])


def model_key(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What is being asked, ``"model"`` and ``"tokenizer"``: digests of all weights, of which adapters are active, and
    of the vocabulary and chat template.

    Each tensor enters by its name, shape, type and two sums, rounded so that the order of summation does not show. Two
    models that differ in less than a billionth of one tensor's sum are taken for the same.
    """
    weights = hashlib.sha256()
    with torch.no_grad():
        lines = {
            name: _line([name, list(tensor.shape), str(tensor.dtype), *_sums(tensor)])
            for name, tensor in plain_values(model, buffers=True)
        }
    for name in sorted(lines):
        weights.update(lines[name])
    for name, module in model.named_modules():
        switches = [str(getattr(module, switch, None)) for switch in ("disable_adapters", "active_adapters")]
        if switches != ["None", "None"]:
            weights.update(_line([name, *switches]))
    words = hashlib.sha256(_line([len(tokenizer), sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]))
    return {"model": weights.hexdigest()[:16], "tokenizer": words.hexdigest()[:16]}


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of which token has which number; 64 hexadecimal digits."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest()


def checksum(weight: Tensor) -> str:
    """Of the bits of a weight (rows, columns), however it is stored and wherever it lies; 32 hexadecimal digits."""
    bits = hashlib.blake2b(digest_size=16)
    _add_bits(bits, weight)
    return bits.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors, by name: of every bit of them, their dtypes and their shapes; 32 hexadecimal digits."""
    bits = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        bits.update(f"{name} ".encode())
        _add_bits(bits, tensor)
    return bits.hexdigest()


def _add_bits(bits: Any, tensor: Tensor) -> None:
    bits.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    table = tensor.detach().reshape(-1) if tensor.dim() < 2 else tensor.detach()  # a number has no rows
    rows = max(1, _AT_ONCE * len(table) // max(1, table.numel()))
    for start in range(0, len(table), rows):
        content: Any = table[start : start + rows].contiguous().cpu().view(torch.uint8).numpy()
        bits.update(content)


def _sums(tensor: Tensor) -> list[str]:
    if tensor.is_meta or not tensor.numel():
        return []
    values = tensor.detach()
    if not values.dtype.is_floating_point or values.element_size() == 1:  # packed formats have no sums of their own
        values = values.to(torch.float32)
    size = float(torch.linalg.vector_norm(values, ord=1, dtype=torch.float64))
    total = float(values.sum(dtype=torch.float64))
    share = total / size if size and math.isfinite(size) else 0.0
    return [f"{size:.9e}", f"{share:.9f}"]


def _line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode("ascii")
