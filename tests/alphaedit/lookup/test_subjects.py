"""The token a fact is looked up at: right for every way of splitting text, wherever the subject stands."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.subjects import FactToken, _by_prefix, subject_position, subject_span
from corsa_plugins.data.requests import RequestError
from corsa_plugins.model.tokenization import TokenizationError, encode_prompt
from tests.conftest import byte_level_tokenizer, sentencepiece_tokenizer


def no_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


class Letters(PreTrainedTokenizer):
    """A tokenizer without offsets: a token per character, pairs of letters in ``PAIRS`` one token."""

    PAIRS = ("e,", "Fr", "ce")

    def __init__(self) -> None:
        self.pieces = [*self.PAIRS, *map(chr, range(32, 256))]
        super().__init__()

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def _tokenize(self, text: str, **kwargs: object) -> list[str]:
        found: list[str] = []
        while text:
            piece = next((pair for pair in self.PAIRS if text.startswith(pair)), text[0])
            found.append(piece)
            text = text[len(piece) :]
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizer | PreTrainedTokenizerFast]] = {
    "byte-level": byte_level_tokenizer,
    "byte-level, no BOS": lambda: no_bos(byte_level_tokenizer()),
    "sentencepiece bpe": lambda: sentencepiece_tokenizer("bpe"),
    "sentencepiece unigram": lambda: sentencepiece_tokenizer("unigram"),
    "sentencepiece bpe, no BOS": lambda: no_bos(sentencepiece_tokenizer("bpe")),
    "letters": Letters,
}
BUILT = {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizer | PreTrainedTokenizerFast:
    return BUILT[request.param]


def pieces(tokenizer: PreTrainedTokenizer | PreTrainedTokenizerFast, prompt: str) -> list[str]:
    """The prompt's text, token by token, as decoding more and more of it shows."""
    ids = encode_prompt(tokenizer, prompt)
    grown = [str(tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))]
    return [b[len(a) :] for a, b in zip(["", *grown], grown, strict=False)]


CHAT = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }} {% endfor %}[assistant]"

PROMPTS = [
    ("France is a country whose capital is", "France"),
    ("The capital of France is", "France"),
    ("Who was born in France", "France"),
    ("Who was born in France ", "France"),
    ("The capital of (France), they play, is", "France"),
    ("In the land of France, the capital is", "France"),
    ("Where was Anna Berg born?", "Anna Berg"),
    ("Buenos Aires", "Buenos Aires"),
    (" Anna Berg plays the", "Anna Berg"),
]


@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
def test_the_tokens_are_the_subjects(
    tokenizer: PreTrainedTokenizer | PreTrainedTokenizerFast, prompt: str, subject: str
) -> None:
    """Its last token completes the subject, and the one before does not; so with the first."""
    found = pieces(tokenizer, prompt)
    until = prompt.index(subject) + len(subject)
    last = subject_position(tokenizer, prompt, subject)
    before, upto = ("".join(found[:n]).lstrip() for n in (last, last + 1))
    text = prompt[:until].lstrip()
    assert upto.startswith(text)
    assert not before.startswith(text)
    first = subject_position(tokenizer, prompt, subject, "subject_first")
    start = len(prompt[: prompt.index(subject)].lstrip())
    assert len("".join(found[:first]).lstrip()) <= start < len("".join(found[: first + 1]).lstrip())
    behind = subject_position(tokenizer, prompt, subject, "subject_first_after_last")
    assert behind == min(last + 1, len(found) - 1)
    assert subject_position(tokenizer, prompt, subject, "last") == len(found) - 1


@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
def test_through_a_chat_template_the_tokens_are_the_subjects_too(
    tokenizer: PreTrainedTokenizer | PreTrainedTokenizerFast, prompt: str, subject: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    ids = encode_prompt(tokenizer, prompt, chat_template=True)
    first, last, behind, end = (
        subject_position(tokenizer, prompt, subject, where, chat_template=True)  # type: ignore[arg-type]
        for where in ("subject_first", "subject_last", "subject_first_after_last", "last")
    )
    text = str(tokenizer.decode(ids[first : last + 1]))
    assert text.strip().startswith(subject)
    assert len(text.strip()) <= len(subject) + 1, "a token may span the end"
    assert subject not in str(tokenizer.decode(ids[first:last]))
    assert (behind, end) == (last + 1, len(ids) - 1)


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    with pytest.raises(TokenizationError, match="does not write the prompt 'In France' as it is"):
        subject_position(tiny_tokenizer, "In France", "France", chat_template=True)


@settings(deadline=None, max_examples=40)
@given(
    before=st.text("abc ,.", max_size=12),
    after=st.text("abc ,.", max_size=12),
    name=st.sampled_from([name for name in TOKENIZERS if name != "letters"]),
)
def test_without_offsets_the_same_token_is_found(before: str, after: str, name: str) -> None:
    tokenizer, prompt = BUILT[name], f"{before} Anna Berg{after}"
    ids, span = encode_prompt(tokenizer, prompt), subject_span(prompt, "Anna Berg")
    by_offsets = subject_position(tokenizer, prompt, "Anna Berg")
    assert _by_prefix(tokenizer, prompt, ids, span)[1] == by_offsets


def test_a_token_that_spans_the_end_of_the_subject_is_its_last() -> None:
    """ "e," is one token, and so is "ce": the subject alone is split in another way."""
    tokenizer = BUILT["letters"]
    assert subject_position(tokenizer, "Are you in Rome, or", "Rome") == len("Are you in Rom")
    assert pieces(tokenizer, "Are you in Rome, or")[len("Are you in Rom")] == "e,"


def test_of_two_occurrences_the_last_counts(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "France is old. The capital of France is"
    assert subject_span(prompt, "France") == (30, 36)
    alone = subject_position(tiny_tokenizer, "The capital of France is", "France")
    offset = len(encode_prompt(tiny_tokenizer, prompt)) - len(encode_prompt(tiny_tokenizer, "The capital of France is"))
    assert subject_position(tiny_tokenizer, prompt, "France") == alone + offset


def test_a_part_of_another_word_counts_only_where_there_is_no_whole_one() -> None:
    assert subject_span("Ana lives in Anatolia", "Ana") == (0, 3)
    assert subject_span("What is made of Anas", "Ana") == (16, 19)
    assert subject_span("北京是哪国的首都", "北京") == (0, 2)


def test_spaces_around_the_subject_do_not_count() -> None:
    assert subject_span("The capital of France is", " France ") == (15, 21)


@pytest.mark.parametrize("fact_token", ["subject_last", "subject_first", "last"])
def test_a_subject_of_several_bytes_ends_with_its_last_byte(
    tiny_tokenizer: PreTrainedTokenizerFast, fact_token: FactToken
) -> None:
    tiny_tokenizer.backend_tokenizer.post_processor = None
    ids = encode_prompt(tiny_tokenizer, "東京 is")
    position = subject_position(tiny_tokenizer, "東京 is", "東京", fact_token)
    assert position == {"subject_last": 5, "subject_first": 0, "last": len(ids) - 1}[fact_token]


def test_a_subject_that_is_not_there_is_named(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match=r"'Norway' does not occur in the prompt 'The capital of France is'"):
        subject_position(tiny_tokenizer, "The capital of France is", "Norway")
    with pytest.raises(RequestError, match="blank"):
        subject_position(tiny_tokenizer, "The capital of France is", " ")
