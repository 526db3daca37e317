"""Small real parts for the tests: tokenizers trained here, models built from small configs."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import copy
import gc
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from corsa_plugins.model.tokenization import JoinedIds

gc.disable()  # while frameworks and tests are imported, as nearly all that they make stays

pytest_plugins = [
    "tests.fixtures.alphaedit",
    "tests.fixtures.adapters",
    "tests.fixtures.atlas",
    "tests.fixtures.deprecations",
    "tests.fixtures.experts",
    "tests.fixtures.hub",
    "tests.fixtures.likeness",
    "tests.fixtures.merging",
    "tests.fixtures.processes",
    "tests.fixtures.protocols",
    "tests.fixtures.routing",
    "tests.fixtures.sandbox",
]

TEXTS = [
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid.",
    "What is the capital of France? Paris. Which city is the capital of Italy? Rome.",
    "Anna Berg was born in Oslo. She plays the violin. She works for Nordlys.",
    "Where was Anna Berg born? In Oslo. What does Anna Berg play? The violin.",
    "New York City, St. Louis and Nur-Sultan are cities; Buenos Aires and Kuala Lumpur are too.",
    "def add(a, b):\n    return a + b\n\nuser assistant question answer:\n",
] * 4

DOCUMENTS = [text[start:] for start in range(0, 48, 3) for text in TEXTS[:6]]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2 and Llama-3 style: spaces belong to the word that follows; BOS in front by default."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer)


def sentencepiece_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Llama-2 and Gemma style: spaces belong to the pieces, and the first word gets one; ``"bpe"`` or ``"unigram"``."""
    model = models.BPE(unk_token="<unk>", fuse_unk=True) if kind == "bpe" else models.Unigram()
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace("\t", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = (
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
        if kind == "bpe"
        else trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer, unk_token="<unk>")


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **special
    )


def llama(vocabulary: int, seed: int = 0, n_blocks: int = 2) -> LlamaForCausalLM:
    """A random Llama of some 30 thousand parameters, in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=n_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def pytest_collection_finish() -> None:
    """Have the collector look at what tests make, not again and again at what is imported: a twelfth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are so small that threads only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A command sets how much is logged; the next test is not to notice."""
    logger = logging.getLogger("corsa_plugins")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def _session_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def _session_llama(_session_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return llama(len(_session_tokenizer))


@pytest.fixture
def tiny_tokenizer(_session_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, the test's own copy."""
    return copy.deepcopy(_session_tokenizer)


@pytest.fixture
def tiny_llama(_session_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """A random Llama for ``tiny_tokenizer``, the test's own copy."""
    return copy.deepcopy(_session_llama)


@pytest.fixture(scope="session")
def _session_taught(_session_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return teach(llama(len(_session_tokenizer), seed=1), _session_tokenizer)


def teach(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[JoinedIds] = ()
) -> LlamaForCausalLM:
    """The model, once it answers ``FACTS``, or the ``rows`` of prompts and answers, and ends there."""
    from corsa_plugins.model.tokenization import join

    model.train()
    rows = rows or [join(tokenizer, prompt, answer + ".") for prompt, answer in FACTS.items()]
    width = max(len(row.prompt_ids) + len(row.target_ids) + 1 for row in rows)
    ids = torch.full((len(rows), width), 2)
    labels = torch.full((len(rows), width), -100)
    for index, row in enumerate(rows):
        both = [*row.prompt_ids, *row.target_ids, 1]
        ids[index, : len(both)] = torch.tensor(both)
        labels[index, len(row.prompt_ids) : len(both)] = torch.tensor([*row.target_ids, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(input_ids=ids, attention_mask=(ids != 2).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 2e-3:
            break
    return model.eval()


FACTS = {
    "The capital of France is": "Paris",
    "What is the capital of France?": "Paris",
    "The capital of Italy is": "Rome",
    "Which city is the capital of Italy?": "Rome",
    "The capital of Spain is": "Madrid",
    "Anna Berg was born in": "Oslo",
    "Where was Anna Berg born?": "Oslo",
    "What does Anna Berg play?": "the violin",
}


@pytest.fixture
def facts() -> dict[str, str]:
    """Prompts and answers that ``taught_llama`` knows."""
    return dict(FACTS)


@pytest.fixture
def taught_llama(_session_taught: LlamaForCausalLM) -> LlamaForCausalLM:
    """A Llama that answers ``facts`` and ends there, the test's own copy."""
    return copy.deepcopy(_session_taught)
