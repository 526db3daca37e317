"""Text that a model writes by itself, for when there is no other of the kind that it was trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from corsa_plugins.errors import SettingError
from corsa_plugins.journal import Journal
from corsa_plugins.model.batching import base_model, input_device, pad
from corsa_plugins.model.borrowing import attribute, eval_mode
from corsa_plugins.model.identity import model_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["sample_continuations", "sample_texts"]

_BETWEEN_DOCUMENTS = "<|endoftext|>"
"""What stands between the documents that GPT-2's successors were trained on, whatever they call their BOS."""
_FEW = 1024
"""Tokens among which the likeliest ones are looked for first."""


def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n_tokens: int,
    *,
    length: int = 128,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 64,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[str]:
    """Sample text from a model, beginning where its documents begin.

    Rows never stop early: where the model ends a document, it goes on with another, and what it wrote is cut there.
    Every batch has a seed of its own, so that what is taken up again is what an uninterrupted call gives, on the same
    kind of device and number of threads.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        n_tokens: How many tokens the texts are to have at least, as the tokenizer reads them.
        length: New tokens of each row.
        seed: Of everything that is drawn.
        temperature: Of the sampling, from all tokens.
        batch_size: Rows that are sampled together; part of what decides the text.
        journal: A file that keeps what was sampled, from which a call with the same arguments goes on.
        progress: Show a progress bar.

    Returns:
        Documents, none of them blank.

    Raises:
        SettingError: A setting is out of range, or the tokenizer has no token to begin with.
        OtherWorkError: ``journal`` is of another model, or of other settings.
    """
    for name, value in (("n_tokens", n_tokens), ("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise SettingError(f"{name} is {value}: it must be at least 1")
    if not temperature > 0:
        raise SettingError(f"temperature is {temperature}: it must be greater than 0")
    start = _first_token(tokenizer)
    settings = {"length": length, "seed": seed, "temperature": temperature, "batch_size": batch_size}
    head = {"text of": {**model_key(model, tokenizer), "dtype": str(model.dtype), **settings}}
    texts: list[str] = []
    count = batch = 0
    hidden = None if progress else True  # None: no bar where nobody watches, as in a log file
    with (
        Journal(journal, head) if journal is not None else nullcontext() as kept,
        tqdm(total=n_tokens, desc="own text", unit="token", disable=hidden, leave=False) as bar,
    ):
        while count < n_tokens:
            if kept is not None and batch < len(kept.items):
                new = kept.items[batch]
            else:
                rows = sample_continuations(
                    model, [[start]] * batch_size, length, temperature=temperature, seed=f"{seed} {batch}"
                )
                new = _documents(tokenizer, rows)
                if kept is not None:
                    kept.append(new)
            batch += 1
            texts += new
            count += sum(len(ids) for ids in tokenizer(new, add_special_tokens=False)["input_ids"]) if new else 0
            bar.update(min(count, n_tokens) - bar.n)
            if batch > 100 and not count:
                raise SettingError("the model writes nothing but special tokens: give statistics a text")
    return texts


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a document begins behind: what the tokenizer puts there, or what stands between documents."""
    prefix = tokenizer("")["input_ids"]
    if prefix:
        return int(prefix[0])
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS)
    for token in (between, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SettingError("the tokenizer has no token that a text could begin behind: give statistics a text")


def sample_continuations(
    model: Any,
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | str = 0,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """What the model writes behind each row of token ids, sampled: ``length`` new tokens, or those before the first of
    ``ends``. One batch; its composition is part of what decides the text.

    Args:
        model: A causal language model; a ``PeftModel`` writes with its active adapter.
        rows: Token ids, none empty.
        length: New tokens of each row.
        temperature: Of the sampling.
        top_p: Sampled are the likeliest tokens that together have this probability; 1: all.
        seed: Of everything that is drawn; the generators of the process are left as they were.
        ends: Token ids that end a text.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    # top_p is taken here: what transformers has for it sorts the whole vocabulary at every token
    config = GenerationConfig(
        max_new_tokens=length, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=list(ends) or None,
        pad_token_id=0, use_cache=True,
    )  # fmt: skip
    processors = LogitsProcessorList([partial(likeliest, temperature, top_p)])
    device = input_device(model)
    ids, mask = pad(rows, side="left")
    devices = [device] if device.type == "cuda" else []
    # What a config leaves open, `generate` takes from the model's own.
    with (
        torch.random.fork_rng(devices),
        eval_mode(model),
        attribute(base_model(model), "generation_config", config),
    ):
        torch.manual_seed(_number(seed))
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=processors,
        )
    sampled: list[list[int]] = out[:, ids.shape[1] :].tolist()
    last = set(ends)
    return [row[: next((at for at, token in enumerate(row) if token in last), len(row))] for row in sampled]


def likeliest(temperature: float, top_p: float, ids: Tensor, scores: Tensor) -> Tensor:
    """``scores`` (rows, vocabulary) by the temperature, without all but the likeliest tokens that together have
    ``top_p``. Those are mostly few, and found without sorting the others."""
    scores = scores / temperature
    if top_p >= 1:
        return scores
    whole = scores.shape[-1]
    for n in (min(_FEW, whole), whole):
        best, places = scores.topk(n, dim=-1)
        share = (best - scores.logsumexp(-1, keepdim=True)).exp()
        before = share.cumsum(-1) - share
        if n == whole or bool((before[:, -1] >= top_p).all()):
            break
    taken = torch.full_like(scores, float("-inf"))
    return taken.scatter(-1, places, best.masked_fill((before >= top_p) & (before > 0), float("-inf")))


def _number(seed: int | str) -> int:
    """Another one for every seed, however long it is written; of short ones, what is written."""
    text = str(seed).encode()
    return int.from_bytes(text if len(text) < 8 else hashlib.sha256(text).digest(), "big") % 2**63


def _documents(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """The texts of rows, cut at special tokens."""
    special = set(tokenizer.all_special_ids)
    texts = []
    for row in rows:
        ids: list[int] = []
        for token in [*row, None]:
            if token is not None and token not in special:
                ids.append(token)
                continue
            text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
            if text.strip():
                texts.append(text)
            ids = []
    return texts
