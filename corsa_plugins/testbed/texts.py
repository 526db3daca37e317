"""Text about the testbed's world, for statistics of its model's keys."""

from __future__ import annotations

from typing import Any

from corsa_plugins.testbed.build import Testbed
from corsa_plugins.testbed.corpus import Corpus

__all__ = ["texts_of_testbed"]


def texts_of_testbed(testbed: Testbed, n: int = 2000, seed: int = 1) -> list[str]:
    """Documents of the kind the testbed's model was trained on: biographies and questions.

    Args:
        testbed: Whose world they tell of.
        n: How many; one has some 30 tokens.
        seed: The testbed's own seed is 0: another gives other documents about the same facts.
    """
    corpus = Corpus(testbed.world, testbed.tokenizer, testbed.recipe.training, seed=seed)
    decode: Any = testbed.tokenizer.decode
    documents = (corpus.document().tokens for _ in range(n))
    return [decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False) for tokens in documents]
