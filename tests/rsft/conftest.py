"""The model that most tests of R-SFT train."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.training import gpt2


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return gpt2(len(tiny_tokenizer))
