"""A merged model beside its base: every tensor is there, in the shape of the base's and the precision asked for.

mergekit writes what its description of an architecture lists. A tensor that a checkpoint has besides, a head that was
added or a block of another kind, it leaves out without a word, and transformers draws it at random when the output is
loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from corsa_plugins.merging.recipe import METHOD
from mergekit_ext.stored_models import StoredModel

__all__ = ["missing_from"]

_BLOCK = re.compile(r"\.(\d+)\.")
_RECOMPUTED = re.compile(r"(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
"""Buffers of older checkpoints, which models compute themselves; a bias of a linear map has its map's name in front."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_SHOWN = 3


def missing_from(
    merged: StoredModel, base: StoredModel, config: MergeConfiguration, options: MergeOptions
) -> str | None:
    """What a merged model lacks, or has otherwise than asked for, in a sentence; ``None`` where it is whole.

    Args:
        merged: The output.
        base: The model that the output is to have the form of.
        config: The recipe. One of slices has other blocks than the base, each of which must have what the base's have.
        options: With ``allow_crimes`` nothing is said against other shapes.
    """
    absent = sorted(_absent(merged, base, bool(config.slices or config.modules)))
    if absent:
        return (
            f"{_listed(absent)} of the base {base.path} would be missing: mergekit does not know them as tensors of a "
            f"{base.architecture}, and leaves them out"
        )
    aligned = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    if not (config.slices or config.modules or options.allow_crimes):
        for name, shape in sorted(base.shapes.items()):
            found = merged.shapes.get(name, shape)
            vocabulary = aligned and base.config.get("vocab_size") in shape and shape[1:] == found[1:]
            if found != shape and not vocabulary:
                return f"{name} would have shape {found}, and in the base {base.path} it has {shape}"
    return _other_dtype(merged, base, config)


def _absent(merged: StoredModel, base: StoredModel, other_blocks: bool) -> Iterator[str]:
    """Names of tensors that there should be."""
    left = [name for name in base.shapes if not _RECOMPUTED.search(name)]
    if merged.config.get("tie_word_embeddings"):
        left = [name for name in left if not name.endswith("lm_head.weight")]
    if not other_blocks:
        yield from (name for name in left if name not in merged.shapes)
        return
    kinds = {_BLOCK.sub(".*.", name, count=1) for name in left}
    there: dict[str, set[str]] = {}
    for name in merged.shapes:
        place = _BLOCK.search(name)
        there.setdefault(_BLOCK.sub(".*.", name, count=1), set()).add(place[1] if place else "")
    lists = {kind.partition(".*.")[0] for kind in kinds if ".*." in kind}
    # of each list of blocks, how many the output has, by the kind that is in most of them
    counts = {of: max((len(n) for k, n in there.items() if k.startswith(f"{of}.*.")), default=0) for of in lists}
    for kind in kinds:
        of = kind.partition(".*.")[0]
        if kind not in there or (".*." in kind and _in_every_block(base, kind, of) and len(there[kind]) < counts[of]):
            yield kind


def _in_every_block(base: StoredModel, kind: str, of: str) -> bool:
    """Whether every block of a list has such a tensor in the base."""
    first, _, last = kind.partition(".*.")
    blocks = {place[1] for name in base.shapes if name.startswith(f"{of}.") and (place := _BLOCK.search(name))}
    return all(f"{first}.{block}.{last}" in base.shapes for block in blocks)


def _other_dtype(merged: StoredModel, base: StoredModel, config: MergeConfiguration) -> str | None:
    asked = config.out_dtype or config.dtype
    for name, dtype in sorted(merged.dtypes.items()):
        if asked is not None:
            wanted: str | None = _DTYPES.get(str(asked))
        elif config.merge_method == METHOD:
            wanted = base.dtypes.get(name)
        else:
            return None
        if wanted is not None and dtype != wanted and dtype in _DTYPES.values():
            return f"{name} would be written as {dtype}, and {wanted} was asked for"
    return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
