"""Joining prompt and target: the ids are those of the text, split where the prompt ends."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
from tokenizers import Tokenizer, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.methods.locft.train import locft
from corsa_plugins.model.tokenization import TokenizationError, encode_prompt, join, separate
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.conftest import CHAT_TEMPLATE, byte_level_tokenizer, sentencepiece_tokenizer
from tests.fixtures.alphaedit import QUICK

PAIRS = [
    ("The capital of France is", "Paris"),
    ("The capital of France is ", "Paris"),
    ("What is the capital of France?", "Buenos Aires"),
    ("What is the capital of France?\n", "Kuala Lumpur"),
    ("question:", "St. Louis"),
    ("answer", "é"),
]


KINDS = {
    "byte_level": byte_level_tokenizer,
    "bpe": partial(sentencepiece_tokenizer, "bpe"),
    "unigram": partial(sentencepiece_tokenizer, "unigram"),
}
trained = cache(lambda kind: KINDS[kind]())


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return copy.deepcopy(trained(request.param))


@pytest.mark.parametrize(("prompt", "target"), PAIRS)
def test_ids_are_those_of_the_joined_text(tokenizer, prompt, target):
    joined = join(tokenizer, prompt, target)
    assert joined.prompt_ids + joined.target_ids == tokenizer("".join(separate(prompt, target)))["input_ids"]


@pytest.mark.parametrize(("prompt", "target"), PAIRS)
def test_prompt_ids_are_those_the_model_is_asked_with(tokenizer, prompt, target):
    assert join(tokenizer, prompt, target).prompt_ids == encode_prompt(tokenizer, prompt)


@pytest.mark.parametrize(("prompt", "target"), PAIRS[:5])
def test_the_target_alone_decodes_to_the_target(tokenizer, prompt, target):
    assert tokenizer.decode(join(tokenizer, prompt, target).target_ids).strip() == target


def test_a_space_at_the_end_of_the_prompt_changes_nothing(tokenizer):
    assert join(tokenizer, "The capital of France is ", "Paris") == join(tokenizer, "The capital of France is", "Paris")


def test_one_bos_in_front_and_none_inside(tokenizer):
    joined = join(tokenizer, "The capital of France is", "Paris")
    assert joined.prompt_ids[0] == tokenizer.bos_token_id
    assert (joined.prompt_ids + joined.target_ids).count(tokenizer.bos_token_id) == 1


def test_a_prompt_that_brings_its_own_bos_gets_no_second(tokenizer):
    assert encode_prompt(tokenizer, "<s>Paris").count(tokenizer.bos_token_id) == 1


def test_an_eos_added_by_the_tokenizer_is_neither_prompt_nor_target():
    tokenizer = byte_level_tokenizer()
    plain = join(tokenizer, "The capital of France is", "Paris")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("Paris")["input_ids"][-1] == 1  # the setting is in force
    assert join(tokenizer, "The capital of France is", "Paris") == plain


@pytest.mark.parametrize("tokenizer", ["byte_level", "bpe"], indirect=True)
def test_a_token_across_the_boundary_leaves_the_prompt_as_it_is_asked(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ ' ca' if m['role'] == 'user' }}{% endfor %}"
    asked = encode_prompt(tokenizer, "The", chat_template=True)
    whole = tokenizer("The capital", add_special_tokens=False)["input_ids"]
    assert whole[: len(asked)] != asked, "no token spans this boundary: the test tests nothing"
    joined = join(tokenizer, "The", "pital", chat_template=True)
    assert joined.prompt_ids == asked
    assert tokenizer.decode(joined.prompt_ids + joined.target_ids) == "The capital"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_target_on_a_new_line_has_no_space_in_front(kind):
    tokenizer = sentencepiece_tokenizer(kind)
    target_ids = join(tokenizer, "answer:\n", "Paris").target_ids
    assert not tokenizer.convert_ids_to_tokens(target_ids)[0].startswith("▁")
    inline_ids = join(tokenizer, "answer:", "Paris").target_ids
    assert tokenizer.convert_ids_to_tokens(inline_ids)[0].startswith("▁")


@pytest.mark.parametrize(
    ("prompt", "target", "expected"),
    [
        ("a", "b", ("a", " b")),
        ("a ", "b", ("a", " b")),
        ("a\n", "b", ("a\n", "b")),
        ("a", " b", ("a", " b")),
        ("a:\n    ", "b", ("a:\n", "    b")),
        ("a", "\nb", ("a", "\nb")),
        ("a ", " b", ("a", " b")),
        ("a:\n    ", "  b", ("a:\n", "      b")),
        ("f(", "b", ("f(", "b")),
        ('He said "', "b", ('He said "', "b")),
        ('He said "a"', "b", ('He said "a"', " b")),
        ("“a”", "b", ("“a”", " b")),
        ("法国的首都是", "巴黎", ("法国的首都是", "巴黎")),
        ("首都は。", "Paris", ("首都は。", "Paris")),
        ("The capital is", "東京", ("The capital is", " 東京")),
        ("수도는", "서울", ("수도는", " 서울")),
        ("เมืองหลวงคือ", "ปารีส", ("เมืองหลวงคือ", "ปารีส")),
        (" ", "b", (" ", "b")),
    ],
)
def test_separate_puts_one_space_where_one_belongs_and_there_is_none(prompt, target, expected):
    assert separate(prompt, target) == expected


@pytest.mark.parametrize("target", ["", " ", "\n"])
@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_target_is_refused_by_name(tokenizer, target, chat):
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(TokenizationError, match=r"target for the prompt 'The capital of France is' is empty"):
        join(tokenizer, "The capital of France is", target, chat_template=chat)


class TestChat:
    def test_the_target_follows_the_generation_prompt(self, tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
        joined = join(tokenizer, "What is the capital of France?", "Paris", chat_template=True)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert joined.prompt_ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(joined.target_ids) == "Paris"
        assert tokenizer.eos_token_id not in joined.target_ids

    def test_the_templates_bos_is_the_only_one(self, tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
        assert encode_prompt(tokenizer, "user", chat_template=True).count(tokenizer.bos_token_id) == 1

    def test_a_template_that_writes_a_space_before_the_answer_keeps_it(self):
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}[ {{ m['content'] }} ]"
            "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        assert tokenizer.decode(join(tokenizer, "user", "Paris", chat_template=True).target_ids) == " Paris"

    def test_an_empty_thought_before_the_answer_is_not_scored(self):
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}<think></think>{% endif %}"
            "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        )
        assert tokenizer.decode(join(tokenizer, "user", "Paris", chat_template=True).target_ids) == "Paris"

    def test_where_thinking_can_be_left_out_the_answer_follows_at_once(self):
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = (  # as Qwen 3: an answer has an empty thought before it, and so can its prompt
            "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}<think></think>\n{% endif %}"
            "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
            "{% if enable_thinking is defined and enable_thinking is false %}<think></think>\n{% endif %}{% endif %}"
        )
        joined = join(tokenizer, "user", "Paris", chat_template=True)
        messages = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "Paris"}]
        read = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(joined.target_ids) == "Paris"
        both = joined.prompt_ids + joined.target_ids
        assert read[: len(both)] == both

    def test_without_a_template_the_error_says_what_to_do(self):
        with pytest.raises(TokenizationError, match=r"no chat template: leave chat_template off"):
            join(byte_level_tokenizer(), "user", "Paris", chat_template=True)


def test_what_becomes_no_token_is_refused_by_name_and_by_every_part(llama_bench) -> None:
    """By a tokenizer that knows some letters, and drops all else without a word."""
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 2)}
    backend = Tokenizer(BPE({"<pad>": 0, "<end>": 1, **letters}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    assert tokenizer("🙂").input_ids == []
    with pytest.raises(TokenizationError, match="the target '🙂' gives no tokens: write an answer the tokenizer can"):
        join(tokenizer, "smile", "🙂")
    with pytest.raises(TokenizationError, match="the prompt '🙂' gives no tokens: write a prompt the tokenizer can"):
        encode_prompt(tokenizer, "🙂")
    before, request = llama_bench.weights(), EditRequest(prompt="smile", subject="smile", target_new="🙂")
    for part in (
        lambda: rsft(llama_bench.model, tokenizer, [request], RSFTSettings(layer=1, epochs=1, steps=1)),
        lambda: locft(llama_bench.model, tokenizer, [request], LocFTSettings(layer=1, epochs=1)),
        lambda: evaluate(llama_bench.model, tokenizer, [request], max_new_tokens=2, progress=False),
        lambda: replace(llama_bench, tokenizer=tokenizer).editor(QUICK).edit([request]),
    ):
        with pytest.raises(CorsaError, match="'🙂' gives no tokens"):
            part()
    assert llama_bench.holds(before)
