"""Free answers: what they are measured by, and what a model is left to do by itself."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.wild import Question, WildAnswer, ask_wild, wild_questions, wild_summary
from corsa_plugins.bench.wild.questions import CONVERSATION
from corsa_plugins.model.asking import generate_answers
from corsa_plugins.model.tokenization import encode_prompt
from tests.conftest import CHAT_TEMPLATE
from tests.support.small_plans import BORN, FRANCE


def said(output, right="Ar", **more):
    answer = WildAnswer.of(Question("prompt", 0, "?", (right,), **more), output, True)
    return answer.exact, answer.words, answer.text


@pytest.mark.parametrize(
    ("output", "verdicts"),
    [
        (" Ar.", (True, True, True)),
        ("It is Ar.", (False, True, True)),
        ("It is barium.", (False, False, True)),
        ("It is Ba.", (False, False, False)),
        ("", (False, False, False)),
    ],
)
def test_each_measure_is_more_lenient_than_the_one_before(output, verdicts):
    assert said(output) == verdicts


def test_a_denied_question_is_right_without_the_answer_and_silence_is_none():
    assert said(" Barium, of course", denied=True) == (None, True, False)
    assert said(" Ar", denied=True) == (None, False, False)
    assert said(" \n.", denied=True) == (None, False, False)


def test_yes_and_no_at_once_is_neither():
    assert said("Yes.", "yes", wrong=("no",)) == (True, True, True)
    assert said("Yes and no", "yes", wrong=("no",)) == (False, False, True)
    assert said("Yes, I know", "yes", wrong=("no",)) == (False, True, True)


def test_a_request_counts_once_and_as_a_whole_where_its_form_does():
    def answer(form, index, right):
        return WildAnswer.of(Question(form, index, "?", ("yes",)), "yes" if right else "no", False)

    rows = [answer("reworded", 0, right) for right in (True, False, False)] + [answer("reworded", 1, True)]
    rows += [answer("yes or no", 0, right) for right in (True, False)]
    rows += [answer("yes or no", 1, right) for right in (True, True)]
    summary = wild_summary(rows)
    assert summary["reworded"]["words"].mean == pytest.approx((1 / 3 + 1) / 2)
    assert summary["yes or no"]["words"].mean == 1 / 2
    assert summary["reworded"]["stopped"].mean == 0
    assert "judged" not in summary["reworded"]


def test_who_has_learned_nothing_denies_nothing():
    """Every negated question is answered without the new answer by a model that does not know it."""

    def answer(form, index, output):
        return WildAnswer.of(Question(form, index, "?", ("Ar",), denied=form == "negated"), output, True)

    untaught = [answer(form, index, "Boron") for form in ("prompt", "negated") for index in range(3)]
    assert all(one.words for one in untaught if one.form == "negated")
    assert wild_summary(untaught)["negated"].keys() == {"stopped"}
    rows = [answer("prompt", 0, "Ar"), answer("negated", 0, "Boron")]  # said, and not when it is denied
    rows += [answer("prompt", 1, "Ar"), answer("negated", 1, "Ar")]  # said whatever is asked
    rows += [answer("prompt", 2, "barium"), answer("negated", 2, "Ba")]  # "ar" is found in the text of it alone
    negated = wild_summary(rows)["negated"]
    assert (negated["words"].mean, negated["words"].n) == (1 / 2, 2)
    assert (negated["text"].mean, negated["text"].n) == (pytest.approx(2 / 3), 3)
    assert negated["stopped"].n == 3


def test_outputs_are_the_models_own_whatever_the_order(taught_llama, tiny_tokenizer):
    questions = wild_questions([FRANCE, BORN])
    answers = ask_wild(taught_llama, tiny_tokenizer, questions, max_new_tokens=6)
    for question, answer in zip(questions, answers, strict=True):
        before = CONVERSATION if question.conversation else ()
        (own,) = generate_answers(
            taught_llama, tiny_tokenizer, [question.prompt], max_new_tokens=6, conversation=before
        )
        assert (answer.form, answer.index, answer.prompt) == (question.form, question.index, question.prompt)
        assert (answer.output, answer.stopped) == (own.text, own.finished)
    assert WildAnswer.from_dict(answers[0].as_dict()) == answers[0]


def test_a_conversation_is_turns_in_chat_and_paragraphs_without(tiny_tokenizer):
    plain = tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, "Who?", conversation=[("a b", "c d")]))
    assert plain.endswith("a b\n\nc d\n\nWho?")
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    chat = tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, "Who?", True, [("a b", "c d")]))
    assert [chat.index(part) for part in ("<|user|>\na b", "<|assistant|>\nc d", "<|user|>\nWho?")] == sorted(
        chat.index(part) for part in ("<|user|>\na b", "<|assistant|>\nc d", "<|user|>\nWho?")
    )
    assert chat.endswith("<|assistant|>\n")
