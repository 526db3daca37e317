"""Short texts to put before an edit prompt, so that keys and values do not hang on the prompt's being first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.architecture import Architecture, find_architecture
from corsa_plugins.model.batching import pad
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.running import logits_at
from corsa_plugins.model.tokenization import TokenizationError, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BARE", "check_contexts", "context_weights", "generate_contexts"]

BARE = "{}"
LEADS = ("The", "Therefore", "Because", "I", "You")
CHOICES = 5


def generate_contexts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n: int = 5,
    length: int = 10,
    seed: int = 0,
    *,
    architecture: Architecture | None = None,
) -> tuple[str, ...]:
    """Templates of one ``{}`` each: ``"{}"`` itself, and ``n`` sentences of the model's own before it.

    As in MEMIT (Meng et al.), the model continues "The", "Therefore", "Because", "I" and "You", in turn, each token
    drawn from its five likeliest; here never a special one, so that a text is not cut short, and from ``seed`` alone:
    the same model gives the same templates every time.

    Args:
        model: A causal language model of transformers. It is run, and left as it is.
        tokenizer: Its tokenizer.
        n: How many beside the bare one; 0 for none.
        length: Tokens of each text, the beginning and BOS included.
        seed: Of the draws.
        architecture: By default what :func:`corsa_plugins.model.architecture.find_architecture` finds.

    Returns:
        ``n + 1`` templates; fewer where the tokenizer has no tokens for a beginning.

    Raises:
        SettingError: ``n`` or ``length`` is out of range.
        CorsaError: The model's logits are NaN.
    """
    for name, value, least in (("n", n, 0), ("length", length, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"{name} is {value!r}: it must be an integer of at least {least}")
    leads, rows = [], []
    for index in range(n):
        lead = LEADS[index % len(LEADS)]
        try:
            rows.append(encode_prompt(tokenizer, lead))
        except TokenizationError:
            continue
        leads.append(lead)
    parts = architecture or find_architecture(model)
    generator = torch.Generator().manual_seed(seed)
    with frozen(model):
        while growing := [row for row in rows if len(row) < length]:
            for row, token in zip(growing, _draw(parts, tokenizer, growing, generator), strict=True):
                row.append(token)
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    return BARE, *(f"{_plain(text) or lead}. {BARE}" for text, lead in zip(texts, leads, strict=True))


def check_contexts(contexts: Sequence[str]) -> None:
    """Refuse what is not templates with the bare one first.

    Raises:
        SettingError: The message shows the one that is wrong.
    """
    if isinstance(contexts, str) or len(contexts) == 0 or contexts[0] != BARE:
        raise SettingError(f"contexts: the first one must be {BARE!r}, the prompt alone; got {contexts!r}")
    for context in contexts:
        if not isinstance(context, str) or context.count(BARE) != 1:
            raise SettingError(f"contexts: {context!r} must have {BARE!r} once, where the prompt goes")


def context_weights(contexts: Sequence[str]) -> Tensor:
    """(contexts,) float64, adding up to 1: a half for the bare prompt, the other half shared by the rest."""
    weights = torch.full((len(contexts),), 0.5 / max(len(contexts) - 1, 1), dtype=torch.float64)
    weights[0] = 0.5 if len(contexts) > 1 else 1.0
    return weights


def _draw(
    parts: Architecture, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], generator: torch.Generator
) -> list[int]:
    """One more token for each row."""
    ends = torch.tensor([len(row) - 1 for row in rows])
    ids, mask = pad(rows)
    logits = logits_at(parts, ids, mask, torch.arange(len(rows)), ends).double().cpu()
    if logits.isnan().any():
        raise CorsaError("the model's logits are NaN: its weights may be damaged; no contexts can be generated")
    special = [token for token in tokenizer.all_special_ids if token < logits.shape[-1]]
    logits[:, special] = -torch.inf
    logits[:, len(tokenizer) :] = -torch.inf  # vocabularies are padded beyond what the tokenizer can write
    best, tokens = logits.topk(min(CHOICES, logits.shape[-1]))
    chosen = torch.multinomial(best.softmax(-1), 1, generator=generator)
    return tokens.gather(-1, chosen)[:, 0].tolist()


def _plain(text: str) -> str:
    """One line without braces, which would be places to fill in."""
    return " ".join(text.replace("{", " ").replace("}", " ").split())
