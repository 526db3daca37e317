"""Edit requests as the token ids R-SFT trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from corsa_plugins.data.contradictions import check_requests
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.limits import longest_text, vocabulary_size
from corsa_plugins.model.tokenization import TokenizationError, join
from corsa_plugins.rsft.settings import RSFTSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Sample", "make_samples"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One pair (q_n, a_n) of the editing data set.

    Attributes:
        index: Its place among the requests.
        name: How messages and the report refer to it.
        prompt_ids: q_n.
        target_ids: a_n, the ``target_new`` of the request.
        said_ids: The first of them, which have to be the model's first choices for a_n to be said: without the end of
            the sequence. Empty if the tokenizer has no tokens for some of it: nobody can say that.
    """

    index: int
    name: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    said_ids: tuple[int, ...]

    def is_said(self, logits: Tensor) -> bool:
        """Whether the answer is said, by the logits (answer tokens, vocabulary) that predict it."""
        chosen = logits[: len(self.said_ids)].argmax(-1).tolist()
        return bool(self.said_ids) and chosen == list(self.said_ids)


def make_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: RSFTSettings,
) -> list[Sample]:
    """Tokenise the requests as :func:`corsa_plugins.model.tokenization.join` does everywhere else.

    Raises:
        RequestError: No requests; or, listed together, those that give no tokens, are longer than the model can
            read, or have tokens the model does not know.
        SettingError: ``append_eos`` with a tokenizer that has no end-of-sequence token.
    """
    if not requests:
        raise RequestError("there are no edit requests: give at least one")
    if settings.append_eos and tokenizer.eos_token_id is None:
        raise SettingError("append_eos is on, and the tokenizer has no end-of-sequence token: set one, or leave it off")
    end = [tokenizer.eos_token_id] if settings.append_eos else []
    longest, vocabulary = longest_text(model), vocabulary_size(model)
    samples: list[Sample] = []
    problems: list[str] = []
    for index, request in enumerate(requests):
        name = request.name(index)
        try:
            prompt_ids, target_ids = join(tokenizer, request.prompt, request.target_new, bool(settings.chat_template))
        except TokenizationError as error:
            problems.append(f"{name}: {error}")
            continue
        said_ids = () if tokenizer.unk_token_id in target_ids else tuple(target_ids)
        sample = Sample(index, name, tuple(prompt_ids), (*target_ids, *end), said_ids)
        length = len(sample.prompt_ids) + len(sample.target_ids)
        unknown = max(*sample.prompt_ids, *sample.target_ids)
        if longest is not None and length > longest:
            problems.append(f"{name}: {length} tokens, and the model reads {longest}: shorten it")
        elif unknown >= vocabulary:
            problems.append(
                f"{name}: token {unknown}, and the model embeds {vocabulary}: use the model's own tokenizer"
            )
        samples.append(sample)
    if problems:
        raise RequestError(problems, f"{len(problems)} edit requests cannot be trained on")
    for conflict in check_requests(requests).contradictions:
        logger.warning(
            "requests %s contradict each other: the prompt %r is given %s; the last one trained wins",
            ", ".join(map(str, conflict.indices)),
            conflict.prompt,
            " and ".join(map(repr, conflict.targets)),
        )
    return samples
