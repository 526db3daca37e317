"""What an edit is asked in the wild: with and without a context, denied, turned round, and a step further."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["CONVERSATION", "FORMS", "Form", "Question", "wild_questions"]

CONVERSATION: tuple[tuple[str, str], ...] = (
    (
        "How long should I boil an egg if I like the yolk soft?",
        "Six minutes in boiling water, then cold water at once, so that it does not go on cooking.",
    ),
    (
        "And what could I eat with it?",
        "Toasted bread with butter and a little salt is enough; a few radishes go well with it too.",
    ),
)
"""An unrelated conversation."""

_INSTRUCTION = "Please answer the question, or complete the sentence, as briefly as possible.\n\nQ: {}\nA:"


@dataclass(frozen=True)
class Question:
    """One question about one request.

    Attributes:
        form: The name of its form.
        index: Of the request, from 0.
        prompt: What is asked, without any conversation before it.
        right: What makes an answer right, any of them; or wrong, where it is ``denied``.
        wrong: What an answer must not have beside it: "no" beside "yes".
        denied: Whether the right answer is any that does *not* have one of ``right``.
        conversation: Whether it is asked after :data:`CONVERSATION`.
    """

    form: str
    index: int
    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    denied: bool = False
    conversation: bool = False


@dataclass(frozen=True)
class Form:
    """One way of asking.

    Attributes:
        name: In files.
        title: In tables.
        meaning: What is asked, and what is right.
        ask: Makes the questions of a request, which is given with its index.
        whole: Whether a request counts only if all of its questions are answered right: who says yes to everything
            believes nothing.
        if_said: Whether a request counts only where the new answer is given at the plain prompt, by the same measure:
            who has learned nothing does not say the new answer when it is denied either.
    """

    name: str
    title: str
    meaning: str
    ask: Callable[[int, EditRequest], Iterator[Question]]
    whole: bool = False
    if_said: bool = False


def _prompt(index: int, request: EditRequest) -> Iterator[Question]:
    yield Question("prompt", index, request.prompt, (request.target_new,))


def _reworded(index: int, request: EditRequest) -> Iterator[Question]:
    for prompt in request.paraphrases:
        yield Question("reworded", index, prompt, (request.target_new,))


def _instructed(index: int, request: EditRequest) -> Iterator[Question]:
    yield Question("instructed", index, _INSTRUCTION.format(request.prompt), (request.target_new,))


def _conversation(index: int, request: EditRequest) -> Iterator[Question]:
    yield Question("conversation", index, request.prompt, (request.target_new,), conversation=True)


def _yes_no(index: int, request: EditRequest) -> Iterator[Question]:
    for target, right, wrong in _claims(request, "yes", "no"):
        prompt = f"{_claim(request, target)}\n\nIs this correct? Answer yes or no."
        yield Question("yes or no", index, prompt, (right,), (wrong,))


def _true_false(index: int, request: EditRequest) -> Iterator[Question]:
    for target, right, wrong in _claims(request, "true", "false"):
        prompt = f"True or false? {_claim(request, target)}"
        yield Question("true or false", index, prompt, (right,), (wrong,))
    denial = f'True or false? It is not the case that "{_claim(request, request.target_new)}"'
    yield Question("true or false", index, denial, ("false",), ("true",))


def _negated(index: int, request: EditRequest) -> Iterator[Question]:
    prompt = request.prompt.rstrip()
    for verb in (" is", " are", " was", " were"):
        if prompt.endswith(verb):
            yield Question("negated", index, f"{prompt} not", (request.target_new,), denied=True)
            return
    if not prompt.endswith(("?", ":")):
        yield Question("negated", index, f"It is not true that {prompt}", (request.target_new,), denied=True)


def _probes(form: str, probes: Callable[[EditRequest], Sequence[Probe]]) -> Callable[..., Iterator[Question]]:
    def ask(index: int, request: EditRequest) -> Iterator[Question]:
        for probe in probes(request):
            if probe.answer is not None:
                yield Question(form, index, probe.prompt, (probe.answer, *probe.aliases))

    return ask


def _claims(request: EditRequest, right: str, wrong: str) -> Iterator[tuple[str, str, str]]:
    yield request.target_new, right, wrong
    if request.target_old is not None:
        yield request.target_old, wrong, right


def _claim(request: EditRequest, target: str) -> str:
    """A target as said of the prompt."""
    prompt = request.prompt.rstrip()
    return f"{prompt} {target.strip()}{'' if prompt.endswith(('?', ':')) else '.'}"


FORMS: tuple[Form, ...] = (
    Form("prompt", "the prompt", "the edit prompt as it is; the new answer", _prompt),
    Form("reworded", "reworded", "its paraphrases; the new answer", _reworded),
    Form("instructed", "with an instruction", "behind an instruction that asks for a brief answer", _instructed),
    Form("conversation", "after a conversation", "behind an unrelated conversation of two turns", _conversation),
    Form(
        "yes or no",
        "yes or no, all",
        "whether the new answer is correct, and whether the old one is; every one right",
        _yes_no,
        whole=True,
    ),
    Form(
        "true or false",
        "true or false, all",
        "whether the new answer, the old one and the denial of the new one are true; every one right",
        _true_false,
        whole=True,
    ),
    Form(
        "negated",
        "negated, where it is said",
        'the prompt denied ("is not"); any answer but the new one, of those whose new answer the prompt itself gets',
        _negated,
        if_said=True,
    ),
    Form(
        "reversed",
        "reversed",
        "for the subject by the new answer, where requests have it",
        _probes("reversed", lambda request: request.reversed),
    ),
    Form(
        "two hops",
        "two hops",
        "what follows from the new answer, where requests have it (portability)",
        _probes("two hops", lambda request: request.portability),
    ),
)
"""All ways of asking, in the order of tables."""


def wild_questions(requests: Sequence[EditRequest]) -> list[Question]:
    """Every question about requests, form by form."""
    return [
        question for form in FORMS for index, request in enumerate(requests) for question in form.ask(index, request)
    ]
