"""Prompts to keep: the forms of the edits about other subjects, with what the model says to them."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.corsa import kept as module
from corsa_plugins.corsa.kept import keep_answers, keep_texts, make_kept
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import Generation, generate_answers

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Rome", subject="France",
                neighborhood=({"prompt": "The capital of Spain is"},)),  # type: ignore[arg-type]
    EditRequest(prompt="The capital of Spain is the city of", target_new="Rome", subject="Spain",
                paraphrases=("The capital of Italy is the city of",)),
    EditRequest(prompt="Malta is in", target_new="Asia"),
]  # fmt: skip


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What the model writes behind every beginning of a form, in turn."""
    texts: list[str] = []

    def sample(model: object, rows: list[list[int]], length: int, **_: object) -> list[list[int]]:
        return [list(tiny_tokenizer(texts[i % len(texts)])["input_ids"]) for i, _ in enumerate(rows)]

    monkeypatch.setattr(module, "sample_continuations", sample)
    return texts


def test_subjects_are_what_the_model_writes_where_they_stand(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, writes: list[str]
) -> None:
    writes += [" Oz is green", " France is", " the whole wide round world is", " Peru, isolated", " Italy is"]
    prompts = [each.prompt for each in make_kept(taught_llama, tiny_tokenizer, REQUESTS, n=6, texts=0)]
    # One that is edited, one too long for a name and one that never ends are left out, and so is a paraphrase.
    assert {"The capital of Oz is", "The capital of Italy is", "The capital of Oz is the city of"} <= set(prompts)
    own = {text for r in REQUESTS for text in (r.prompt, *r.paraphrases, *(p.prompt for p in r.neighborhood))}
    assert not own & set(prompts)
    assert len(prompts) == len(set(prompts)) <= 6
    assert not [prompt for prompt in prompts if "world" in prompt or "Peru" in prompt]


def test_without_subjects_there_is_no_form(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert make_kept(taught_llama, tiny_tokenizer, REQUESTS[2:], texts=0) == []
    only_texts = make_kept(taught_llama, tiny_tokenizer, REQUESTS[2:], n=6, texts=3)
    assert 0 < len(only_texts) <= 3


@pytest.mark.parametrize(
    ("text", "after", "name"),
    [
        (" Anna Berg lives in Oslo", " lives in", "Anna Berg"),
        (" Anna Berg livestock lives in", " lives in", "Anna Berg livestock"),
        (" France? Paris", "?", "France"),
        (" the UK's capital", "'s capital is", "the UK"),
        (" Oslo. It", "", "Oslo"),
        (" Anna Berg moved", " lives in", ""),
        (" x\ny is", " is", ""),
        (" 'a' (b) is", " is", ""),
    ],
)
def test_a_name_ends_where_the_form_goes_on(text: str, after: str, name: str) -> None:
    assert module._name(text, after) == name


def test_an_answer_is_what_the_model_says_now(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (kept,) = keep_answers(taught_llama, tiny_tokenizer, ["The capital of France is"])
    (said,) = generate_answers(taught_llama, tiny_tokenizer, ["The capital of France is"], max_new_tokens=module.ANSWER)
    assert tiny_tokenizer.decode(kept.ids.target_ids).strip() == said.text.strip()
    assert len(kept.ids.target_ids) <= module.ANSWER


def test_texts_are_the_models_own_and_the_same_for_a_seed(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, same, other = (keep_texts(taught_llama, tiny_tokenizer, 4, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert all(text.ids.prompt_ids and text.ids.target_ids for text in one)


def test_half_of_a_form_has_an_old_answer_as_far_as_there_are_such(
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    writes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lands = ("Oz", "Peru", "Chad", "Mali", "Cuba", "Iran")
    writes += [f" {land} is" for land in lands]
    says = dict(zip(lands, ("Lima", "Lima", "Oslo", " paris, a", "Paris", "Paris"), strict=True))

    def answers(model: object, tokenizer: object, prompts: list[str], **_: object) -> list[Generation]:
        return [
            Generation(next((said for land, said in says.items() if land in prompt), ""), True) for prompt in prompts
        ]

    monkeypatch.setattr(module, "generate_answers", answers)
    request = EditRequest(prompt="The capital of France is", target_new="Rome", target_old="Paris", subject="France")

    def kept(request: EditRequest, n: int) -> list[str]:
        made = make_kept(taught_llama, tiny_tokenizer, [request], n=n, texts=0)
        return [each.prompt.split()[3] for each in made]

    assert kept(request, 4) == ["Mali", "Cuba", "Oz", "Peru"]
    assert kept(request, 6) == ["Mali", "Cuba", "Iran", "Oz", "Peru", "Chad"]
    assert kept(request.model_copy(update={"target_old": "Lima"}), 6)[:2] == ["Oz", "Peru"]
    assert kept(request.model_copy(update={"target_old": None}), 4) == list(lands[:4])
