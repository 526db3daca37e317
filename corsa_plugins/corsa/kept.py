"""Prompts whose answers an edit should leave as they are, made of the edits themselves and by the model itself.

What an edit of "The capital of Japan is" breaks first is "The capital of Italy is": the form is the same, and training
tells the form from the subject no better than it has to. So the forms of the edits are asked about other subjects. Held
there, a model has to tell by the subject. Questions of another form held in place of them teach that form to
keep its old answers, edited ones included.

The subjects are the model's: it goes on from the beginning of a form, "The capital of", and what it writes where the
subject stands is taken, whether it exists or not. Where that gives too few, the model goes on with the list of the
form's subjects (:mod:`corsa_plugins.model.likeness`), and subjects of other forms are asked about. Text that the model
writes from nothing stands for everything else.

Of other subjects those suffer most to which the model gives an edit's old answer: it is pushed away from them too. So
more are asked about than are kept, and up to half of the kept ones of a form are such.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import generate_answers
from corsa_plugins.model.batching import batches_by_length
from corsa_plugins.model.likeness import list_others
from corsa_plugins.model.sampling import sample_continuations, sample_texts
from corsa_plugins.model.tokenization import JoinedIds, as_asked, encode_text, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Kept", "keep_answers", "keep_texts", "make_kept"]

ANSWER = 4
"""Tokens of a kept answer that are held: the first ones decide it."""

_TRIES = 6
_ASKED = 4
"""How many prompts the model is asked for each one that is kept."""
_BATCH = 64
_TEXT = (24, 8)  # tokens of a text of the model's own, and how many of them, the last, are held


@dataclass(frozen=True)
class Kept:
    """A prompt whose answer is held.

    Attributes:
        prompt: Its text, for messages.
        ids: The prompt, and what the model says to it; what it says at each of the latter is held.
    """

    prompt: str
    ids: JoinedIds


@dataclass(frozen=True)
class _Form:
    """A prompt without its subject."""

    before: str
    after: str

    def of(self, subject: str) -> str:
        return self.before + subject + self.after


def make_kept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    n: int = 64,
    texts: int = 16,
    chat_template: bool = False,
    seed: int = 0,
) -> list[Kept]:
    """Prompts of the requests' forms about other subjects, and text of the model's own, with what the model says now.

    Args:
        model: As it is before the edit.
        tokenizer: Its tokenizer.
        requests: The edit; those without a ``subject`` have no form, and text alone is made for them; those without a
            ``target_old`` have no old answer to look for.
        n: About how many prompts, over all forms.
        texts: How many texts.
        chat_template: Ask through the tokenizer's chat template.
        seed: Of the subjects and texts.
    """
    by_form = _prompts_by_form(model, tokenizer, requests, _ASKED * n, chat_template, seed)
    said = _said(model, tokenizer, [prompt for prompts in by_form.values() for prompt in prompts], chat_template)
    share = _share(n, by_form)
    chosen = [
        prompt
        for form, own in _requests_by_form(requests).items()
        for prompt in _chosen([prompt for prompt in by_form[form] if prompt in said], said, own, share)
    ]
    kept = [Kept(prompt, join(tokenizer, prompt, said[prompt], chat_template)) for prompt in dict.fromkeys(chosen)]
    return kept + (keep_texts(model, tokenizer, texts, seed=seed) if texts else [])


def keep_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat_template: bool = False
) -> list[Kept]:
    """Prompts with the beginning of the model's present answers; those it says nothing to are left out."""
    said = _said(model, tokenizer, prompts, chat_template)
    return [Kept(prompt, join(tokenizer, prompt, said[prompt], chat_template)) for prompt in prompts if prompt in said]


def keep_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int, *, seed: int = 0) -> list[Kept]:
    """Text of the model's own, of which the end is held."""
    length, held = _TEXT
    kept = []
    for text in sample_texts(model, tokenizer, n * length, length=length, seed=seed, batch_size=min(n, _BATCH))[:n]:
        ids = encode_text(tokenizer, text, special=True)
        if len(ids) > 1:
            cut = max(1, len(ids) - held)
            kept.append(Kept(text, JoinedIds(ids[:cut], ids[cut:])))
    return kept


def _prompts_by_form(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    n: int,
    chat_template: bool,
    seed: int,
) -> dict[_Form, list[str]]:
    """The forms of the requests about subjects that none of them edits, about ``n`` over all forms; none is a request's
    prompt, paraphrase or probe."""
    subjects = {form: [str(r.subject) for r in own] for form, own in _requests_by_form(requests).items()}
    if not subjects:
        return {}
    taken = {text for request in requests for text in _own_texts(request)}
    edited = {subject.casefold() for found in subjects.values() for subject in found}
    share = _share(n, subjects)
    found = _written(model, tokenizer, subjects, share, chat_template, seed)
    lacking = {form.of("{}"): own for form, own in subjects.items() if len(found.get(form, [])) < share}
    listed = list_others(model, tokenizer, lacking, share, seed=seed) if lacking else {}
    rng = random.Random(seed)
    prompts: dict[_Form, list[str]] = {}
    for form, own in subjects.items():
        new = [s for s in found.get(form, []) + listed.get(form.of("{}"), []) if s.casefold() not in edited]
        new = list(dict.fromkeys(new))
        elsewhere = [s for others in subjects.values() for s in others if s not in own]  # of which this is not edited
        new += rng.sample(elsewhere, min(len(elsewhere), max(0, share - len(new))))
        prompts[form] = [prompt for prompt in map(form.of, new) if prompt not in taken][:share]
    return prompts


def _share(n: int, forms: Collection[object]) -> int:
    """How many of ``n`` prompts are of one form."""
    return max(2, -(-n // max(1, len(forms))))


def _said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], chat_template: bool
) -> dict[str, str]:
    """The beginning of what the model answers to each prompt, where it answers."""
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=ANSWER, chat_template=chat_template)
    return {prompt: answer.text for prompt, answer in zip(prompts, answers, strict=True) if answer.text.strip()}


def _chosen(prompts: Sequence[str], said: dict[str, str], requests: Sequence[EditRequest], share: int) -> list[str]:
    """Of the prompts of a form: half with an old answer of its requests, as far as there are such, and others."""
    old = tuple(request.target_old.strip().casefold() for request in requests if request.target_old)
    alike = [prompt for prompt in prompts if said[prompt].strip().casefold().startswith(old)]
    others = [prompt for prompt in prompts if prompt not in alike]
    chosen = alike[: max(share // 2, share - len(others))]
    return chosen + others[: share - len(chosen)]


def _own_texts(request: EditRequest) -> Iterable[str]:
    probes = (*request.neighborhood, *request.portability)
    return (request.prompt, *request.paraphrases, *request.validation_prompts, *(probe.prompt for probe in probes))


def _requests_by_form(requests: Sequence[EditRequest]) -> dict[_Form, list[EditRequest]]:
    """Those with a subject."""
    by_form: dict[_Form, list[EditRequest]] = {}
    for request in requests:
        if request.subject:
            before, _, after = request.prompt.rpartition(request.subject)
            by_form.setdefault(_Form(before, after), []).append(request)
    return by_form


def _beginning(tokenizer: PreTrainedTokenizerBase, form: _Form, chat_template: bool) -> list[int]:
    """Ids of what stands before the subject, as it is asked."""
    text, start = as_asked(tokenizer, form.of("it"), chat_template)
    return encode_text(tokenizer, text[: start + len(form.before)].rstrip(" "), special=not chat_template)


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: dict[_Form, list[str]],
    share: int,
    chat_template: bool,
    seed: int,
) -> dict[_Form, list[str]]:
    """What the model writes behind the beginning of each form, up to what follows the subject there."""
    found: dict[_Form, list[str]] = {}
    jobs = [
        (form, _beginning(tokenizer, form, chat_template))
        for form in subjects
        if form.before.strip()
        for _ in range(min(_TRIES, 2 * share))
    ]
    for batch in batches_by_length([len(ids) for _, ids in jobs], _BATCH):
        longest = max(len(tokenizer(s)["input_ids"]) for index in batch for s in subjects[jobs[index][0]])
        of_batch = random.Random(f"{seed} {batch[0]}").randrange(2**20)
        rows = sample_continuations(model, [jobs[index][1] for index in batch], longest + 6, seed=of_batch)
        for index, row in zip(batch, rows, strict=True):
            form = jobs[index][0]
            name = _name(str(tokenizer.decode(row, skip_special_tokens=True)), form.after)
            if name and len(name.split()) <= 1 + max(len(subject.split()) for subject in subjects[form]):
                found.setdefault(form, []).append(name)
    return found


def _name(text: str, after: str) -> str:
    """The beginning of a text up to what follows a subject; empty where that is no name."""
    end = (after.split() or [""])[0]
    behind = rf"\s{re.escape(end)}(?!\w)" if after[:1].isspace() else re.escape(end)
    name, *rest = re.split(behind if end else r"[.,;:!?\n]", text, maxsplit=1)
    name = name.strip()
    return name if rest and len(name) > 1 and not re.search(r"[\n\"()\[\]{}<>?!.;:]", name) else ""
