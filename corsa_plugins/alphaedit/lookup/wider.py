"""Keys beyond those of the edit prompts: of the subject in other words, and of other subjects in the same words.

Beside the paper. A prompt's key is one of many that its subject has: where a rewording begins with the subject, the
model looks the fact up by another. And the keys that are nearest to it are those of the same prompt about another
subject, of which a sample of text holds hardly any: a null space does not protect them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.likeness import like_prompts
from corsa_plugins.settings import Count, NonNegativeInt, Positive, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NeighbourSettings", "of_neighbours", "of_subjects"]

_BEHIND = " is"
"""What stands behind a subject without its prompt; a key is read before it."""


@dataclass(frozen=True)
class NeighbourSettings(Settings):
    """Other subjects in the words of the edit prompts, whose outputs an edit leaves where they are.

    The model lists them itself (:mod:`corsa_plugins.model.likeness`); none of them is a subject of the edits.

    Attributes:
        per_form: The most for each wording among the prompts of a batch.
        weight: Of each against an edit, as ``prior_weight`` is of an earlier one.
        seed: Of what the model lists.
    """

    per_form: Count = 10
    weight: Positive = 1.0
    seed: NonNegativeInt = 0


def of_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: NeighbourSettings,
    avoid: Iterable[str] = (),
) -> tuple[EditRequest, ...]:
    """The prompts of the requests about other subjects, to read keys of; their targets mean nothing.

    Args:
        model: It is run, and left as it is.
        tokenizer: Its tokenizer.
        requests: With subjects.
        settings: How many.
        avoid: Subjects that are not to be among them, beside those of the requests.
    """
    prompts = [(request.prompt, request.subject or "") for request in requests]
    like = like_prompts(model, tokenizer, prompts, settings.per_form, avoid=avoid, seed=settings.seed)
    target = requests[0].target_new
    return tuple(EditRequest(prompt=prompt, subject=subject, target_new=target) for prompt, subject in like)


def of_subjects(requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """The requests with nothing before their subjects, to read keys of."""
    return tuple(
        EditRequest(prompt=f"{request.subject}{_BEHIND}", subject=request.subject, target_new=request.target_new)
        for request in requests
    )
