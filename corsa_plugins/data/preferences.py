"""Edit requests as preference data (chosen: the new answer, rejected: the old one), and old answers from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.answers import contains_answer
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.asking import cut_answer, generate_answers
from corsa_plugins.model.limits import longest_text
from corsa_plugins.model.tokenization import encode_prompt, separate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FilledRequests", "PreferenceError", "fill_target_old", "to_preference_rows"]


class PreferenceError(CorsaError, ValueError):
    """Requests that cannot be turned into preferences."""


@dataclass(frozen=True)
class FilledRequests:
    """Requests with their old answers filled in.

    Attributes:
        requests: Those to edit, every one with ``target_old``, in the order given.
        already_known: Those whose new answer the model already gives, as they came; not among ``requests``.
        filled: Those of ``requests`` whose ``target_old`` is the model's answer rather than the caller's.
    """

    requests: tuple[EditRequest, ...]
    already_known: tuple[EditRequest, ...]
    filled: tuple[EditRequest, ...]


def to_preference_rows(
    requests: Sequence[EditRequest], *, conversational: bool = False, answer_suffix: str = ""
) -> list[dict[str, Any]]:
    """Rows of a preference data set, as TRL's ``DPOTrainer`` and ``CoRSATrainer`` read them.

    Args:
        requests: Requests with ``target_old``; see :func:`fill_target_old` for those without.
        conversational: ``False`` for plain text, where the answer carries the space that joins it to the prompt
            (:func:`corsa_plugins.model.tokenization.separate`); ``True`` for lists of messages, which the trainer puts
            through the tokenizer's chat template.
        answer_suffix: Put behind both answers, for instance ``"."``; an end-of-sequence token is the trainer's job.

    Returns:
        One ``{"prompt", "chosen", "rejected"}`` per request, in order.

    Raises:
        PreferenceError: Requests without ``target_old``, by name.
    """
    missing = [request.name(index) for index, request in enumerate(requests) if request.target_old is None]
    if missing:
        raise PreferenceError(
            f"no target_old: {_some(missing)}; add the outdated answers, or let the model fill them in "
            "(fill_target_old)"
        )
    rows = []
    for request in requests:
        new, old = request.target_new + answer_suffix, str(request.target_old) + answer_suffix
        row: dict[str, Any]
        if conversational:
            row = {
                "prompt": [{"role": "user", "content": request.prompt}],
                "chosen": [{"role": "assistant", "content": new.strip()}],
                "rejected": [{"role": "assistant", "content": old.strip()}],
            }
        else:
            # The prompt's part does not depend on the answer, so both answers follow the same text.
            prompt, chosen = separate(request.prompt, new)
            row = {"prompt": prompt, "chosen": chosen, "rejected": separate(request.prompt, old)[1]}
        rows.append(row)
    return rows


def _check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], chat_template: bool
) -> None:
    """Refuse to ask what the model cannot read, of the requests without an old answer."""
    limit = longest_text(model)
    if limit is None:
        return
    problems = []
    for index, request in enumerate(requests):
        length = 0
        if request.target_old is None:
            length = len(encode_prompt(tokenizer, request.prompt, chat_template=chat_template))
        if length > limit:
            problems.append(f"{request.name(index)}: {length} tokens, and the model reads {limit}: shorten it")
    if problems:
        raise PreferenceError("; ".join(problems))


def fill_target_old(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    max_new_tokens: int = 16,
    chat_template: bool = False,
    batch_size: int = 64,
    whole: bool = False,
    progress: bool = False,
) -> FilledRequests:
    """Fill in missing old answers with what the model answers now.

    The answer is the first sentence of the greedy continuation, without the stop; one that ``max_new_tokens`` cuts
    short is cut back to its first clause, or to whole words (:func:`~corsa_plugins.model.asking.cut_answer`). A request
    whose answer already contains ``target_new`` is already known. Requests with a ``target_old`` are passed on as they
    are, unasked.

    Args:
        model: The model before the edit; of a ``PeftModel``, the active adapter answers.
        tokenizer: Its tokenizer.
        requests: Any requests.
        max_new_tokens: Longest answer, in tokens.
        chat_template: Ask through the tokenizer's chat template.
        batch_size: Prompts per forward pass.
        whole: Take all that the model writes, as for code, and not its first sentence.
        progress: Show a progress bar.

    Raises:
        PreferenceError: The model's answer to some requests is empty, or some are longer than it reads, by name.
    """
    without = [request for request in requests if request.target_old is None]
    _check_lengths(model, tokenizer, requests, chat_template)
    generations = generate_answers(
        model,
        tokenizer,
        [request.prompt for request in without],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat_template=chat_template,
        progress=progress,
    )
    answers = iter(
        [
            generation.text.strip() if whole else cut_answer(generation.text, generation.finished)
            for generation in generations
        ]
    )
    kept, known, filled, empty = [], [], [], []
    for index, request in enumerate(requests):
        if request.target_old is not None:
            kept.append(request)
            continue
        answer = next(answers)
        if not answer:
            empty.append(request.name(index))
        elif contains_answer(answer, request.target_new):
            known.append(request)
        else:
            complete = EditRequest(**{**dict(request), "target_old": answer})
            kept.append(complete)
            filled.append(complete)
    if empty:
        raise PreferenceError(
            f"the model gives no answer to {_some(empty)}: give target_old, or raise max_new_tokens ({max_new_tokens})"
        )
    return FilledRequests(tuple(kept), tuple(known), tuple(filled))


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
