"""Asking a model many questions: greedy answers and the log-probabilities of given answers, in batches.

Batches are made of prompts of similar length and padded by their own attention mask; the tokenizer's padding side,
the batch size and the order of the prompts change nothing in the results beyond rounding. Models with a recurrent
state, some of which read padding into it, generate in batches of one length, and RWKV one prompt at a time.

What prompts begin with alike, a system turn or a chat template, is read once for a batch, a prompt once for all answers
that are scored behind it, and a row whose answer has ended is read no more: where two rows come out as by themselves.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.errors import SettingError
from corsa_plugins.model.batching import base_model, input_device, map_by_length, pad
from corsa_plugins.model.borrowing import attribute, eval_mode
from corsa_plugins.model.running import contiguous_into_head, target_logits
from corsa_plugins.model.shared_reading import SharedReading, by_prompt, saves_tokens
from corsa_plugins.model.tokenization import JoinedIds, encode_prompt, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Generation", "TargetScore", "check_positions", "cut_answer", "end_ids", "generate_answers", "score_targets"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What a model generated behind a prompt.

    Attributes:
        text: The generated text, special tokens left out, otherwise as it came.
        finished: Whether the model ended it (end-of-sequence), rather than the limit on new tokens.
    """

    text: str
    finished: bool


@dataclass(frozen=True)
class TargetScore:
    """How a model rates one given answer to a prompt.

    Attributes:
        log_prob: log p(target | prompt) in nats, summed over the target's tokens.
        top1: Whether every token of the target is the model's first choice, given the ones before it; the greedy
            continuation of the prompt then starts with the target. Never of a target that the tokenizer has no tokens
            for: its unknown token is not an answer.
        n_tokens: Number of tokens of the target.
    """

    log_prob: float
    top1: bool
    n_tokens: int


_ABBREVIATIONS = r"(?:\b\w|\b(?:St|Mr|Mrs|Ms|Dr|Jr|Sr|Mt|Ft|Prof|Gen|Lt|Col|Capt|Sgt|Rev|No|vs))"
# A stop stands alone (a tokenizer of words writes "Paris ."), or ends a word and any closing quote or bracket
# (\u2019, \u201d) behind it; the ideographic stops (\u3002, \uff01, \uff1f) need no space after them.
_END = re.compile(r"(?<!\S)[.!?](?=\s|$)|(?P<end>[.!?])(?=[\"'\u2019\u201d)\]]*(?:\s|$))|[\u3002\uff01\uff1f\n]")
_ABBREVIATED = re.compile(rf"{_ABBREVIATIONS}$")
_CLAUSE = re.compile(r"[,;:\u2014]|\s[-\u2013(]")


def cut_answer(text: str, finished: bool = True) -> str:
    """The answer in a generated text: its first sentence, without the stop.

    The text ends at the first newline, or at the first ``.``, ``!`` or ``?`` before whitespace; initials and titles
    ("J. R. R. Tolkien", "St. Louis") do not end it, nor do points inside a word ("3.5"). Leading whitespace
    is skipped.

    Args:
        text: Generated text.
        finished: ``False`` if the generation was cut off by its length. An answer that has no end of its own
            is then cut back to its first clause, or to its last whole word, rather than left in the middle of one.

    Returns:
        The answer, stripped; empty if there is none.
    """
    text = text.lstrip()
    for match in _END.finditer(text):
        if match["end"] == "." and _ABBREVIATED.search(text[: match.start()]):
            continue
        return text[: match.start()].strip()
    if finished:
        return text.strip()
    clause = _CLAUSE.search(text)
    if clause:
        return text[: clause.start()].strip()
    words = text.split(" ")
    return " ".join(words[:-1] if len(words) > 1 else words).strip()


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    chat_template: bool = False,
    conversation: Sequence[tuple[str, str]] = (),
    progress: bool = False,
) -> list[Generation]:
    """Greedy continuations of ``prompts``, in their order.

    Sampling settings and penalties of the model's own generation config are not used.

    Args:
        model: A causal language model; a ``PeftModel`` answers with its active adapter.
        tokenizer: Its tokenizer.
        prompts: Any number of prompts.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts per forward pass.
        chat_template: Ask through the tokenizer's chat template.
        conversation: What was said before each prompt (:func:`~corsa_plugins.model.tokenization.encode_prompt`).
        progress: Show a progress bar.

    Raises:
        SettingError: ``max_new_tokens`` or ``batch_size`` is not positive, or a prompt and its answer are longer than
            a model with learned positions can read.
        TokenizationError: A prompt gives no tokens, or there is no chat template.
    """
    from transformers import GenerationConfig

    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    rows = [encode_prompt(tokenizer, prompt, chat_template, conversation) for prompt in prompts]
    lengths = [len(row) for row in rows]
    check_positions(model, prompts, [length + max_new_tokens - 1 for length in lengths])
    ends = end_ids(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=padding, eos_token_id=ends or None
    )
    generate: Any = model.generate
    reading = SharedReading(model, len(rows), max(lengths, default=0) + max_new_tokens)

    def write(batch: list[list[int]]) -> list[list[int]]:
        ids, mask = (part.to(input_device(model)) for part in pad(batch, padding, side="left"))
        out = generate(input_ids=ids, attention_mask=mask, generation_config=config)
        written: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return written

    def answer(batch: list[list[int]]) -> list[Generation]:
        written = reading.written(batch, max_new_tokens, ends)
        results = []
        for row in write(batch) if written is None else written:
            end = next((i for i, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            results.append(Generation(str(text), end is not None))
        return results

    base = base_model(model)
    if base.config.model_type == "rwkv":
        batch_size = min(batch_size, 1)  # transformers' RWKV mixes the rows of a batch when it goes on from a state
    # What a config leaves open, `generate` takes from the model's own.
    with eval_mode(model), attribute(base, "generation_config", config), contiguous_into_head(model):
        description = "answers" if progress else None
        return map_by_length(answer, rows, lengths, batch_size, one_length=_has_state(base), description=description)


def score_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 64,
    chat_template: bool = False,
    progress: bool = False,
) -> list[TargetScore]:
    """Scores of the (prompt, target) ``pairs``, in their order; arguments and errors as :func:`generate_answers`.

    Log-probabilities are taken in float32, or in the model's precision where that is higher. Padding stands behind the
    tokens, where no causal model, with a recurrent state or without, can see it.
    """
    rows = [join(tokenizer, prompt, target, chat_template) for prompt, target in pairs]
    lengths = [len(row.prompt_ids) + len(row.target_ids) for row in rows]
    check_positions(model, [prompt for prompt, _ in pairs], lengths)
    unknown = _unknown(tokenizer, rows)

    reading = SharedReading(model, len(rows) if saves_tokens(rows, batch_size) else 0, max(lengths, default=0))
    if reading.tried:
        lengths = by_prompt(rows, lengths)

    def score(batch: list[JoinedIds]) -> list[TargetScore]:
        results = []
        for row, logits in zip(batch, reading.predicting(batch) or target_logits(model, batch), strict=True):
            target = torch.tensor(row.target_ids, device=logits.device)
            log_probs = logits.log_softmax(-1).gather(-1, target[:, None])
            top1 = unknown not in row.target_ids and bool((logits.argmax(-1) == target).all())
            results.append(TargetScore(float(log_probs.sum()), top1, len(row.target_ids)))
        return results

    with eval_mode(model), contiguous_into_head(model):
        scores = map_by_length(score, rows, lengths, batch_size, description="log-probs" if progress else None)
    broken = sum(score.log_prob != score.log_prob for score in scores)
    if broken:
        logger.warning("%d of %d log-probabilities are NaN: the model's weights may be damaged", broken, len(scores))
    return scores


def _has_state(base: PreTrainedModel) -> bool:
    """Whether a model has a recurrent state; RWKV and RecurrentGemma, for instance, read left padding into it."""
    return bool(getattr(base, "_is_stateful", False))


def check_positions(model: PreTrainedModel, prompts: Sequence[str], lengths: Sequence[int]) -> None:
    """Raise if a row is longer than a table of learned positions: it would fail half way, and on a GPU for good.

    Raises:
        SettingError: Naming the longest one.
    """
    base = base_model(model)
    limit = getattr(base.config, "max_position_embeddings", None)
    if not lengths or not isinstance(limit, int) or max(lengths) <= limit:
        return
    tables = (
        module.num_embeddings
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
    )
    if any(table < limit + 8 for table in tables):  # OPT and others keep a few rows for padding
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        shown = prompts[worst] if len(prompts[worst]) <= 80 else f"{prompts[worst][:80]} ..."
        raise SettingError(
            f"the prompt {shown!r} and its answer need {lengths[worst]} tokens and the model has {limit} positions: "
            "shorten or leave out the prompt, or lower max_new_tokens"
        )


def _unknown(tokenizer: PreTrainedTokenizerBase, rows: Sequence[JoinedIds]) -> int | None:
    """The id that stands for what the tokenizer has no tokens for; says how many targets hold it."""
    unknown: int | None = tokenizer.unk_token_id
    count = sum(unknown in row.target_ids for row in rows)
    if count:
        logger.warning(
            "%d of %d targets have characters or words that the tokenizer does not know (%r): the model cannot say "
            "them, and their log-probabilities are those of the unknown token",
            count,
            len(rows),
            tokenizer.unk_token,
        )
    return unknown


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: chat models have more than the tokenizer's one."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None})
