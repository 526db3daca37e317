"""The list of requests in a report: every prompt with the answers of each evaluation, as static HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from corsa_plugins.evaluation.records import Answer, Evaluation, ProbeAnswer, Record

__all__ = ["listing", "text"]

LONGEST = 400
"""Characters of an output that are shown; the whole of it is in the records."""

_KINDS = {
    "missed": "the new answer is missing on the edit prompt",
    "paraphrase": "the new answer is missing on a paraphrase",
    "old": "the old answer comes",
    "probe": "a probe is answered wrong",
    "changed": "an answer differs from the first column's",
    "untouched": "untouched facts",
}
"""What the list can be narrowed to."""


_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML or UTF-8 cannot hold: control characters, halves of surrogate pairs, non-characters."""


def text(value: object, longest: int | None = None) -> str:
    """``value`` as text of the page: escaped, and cut if it is long; what no page may hold is shown as a box."""
    raw = str(value)
    if longest is not None and len(raw) > longest:
        raw = f"{raw[:longest]} … ({len(raw) - longest} more characters)"
    return escape(_UNFIT.sub("\ufffd", raw))


def listing(evaluations: Sequence[Evaluation]) -> str:
    """The section's HTML: a search form, which a script brings to life, and a list that needs none.

    Args:
        evaluations: Of the same prompts, at least one; the verdicts that the list can be narrowed by are the last's.
    """
    items = [*_requests(evaluations), *_untouched(evaluations)]
    counts = {kind: sum(kind in kinds for kinds, _ in items) for kind in _KINDS}
    options = "".join(
        f'<option value="{kind}">{escape(title)} ({counts[kind]})</option>'
        for kind, title in _KINDS.items()
        if counts[kind]
    )
    rows = "\n".join(f'<li data-is="{" ".join(kinds)}">{content}</li>' for kinds, content in items)
    return (
        '<form class="search" hidden><input type="search" placeholder="Search prompts and answers" '
        'aria-label="Search prompts and answers"><select aria-label="Which requests">'
        f'<option value="">all ({len(items)})</option>{options}</select><output class="soft"></output></form>\n'
        f'<ul id="items">\n{rows}\n</ul>\n<button id="more" type="button" hidden>Show more</button>'
    )


def _requests(evaluations: Sequence[Evaluation]) -> Iterator[tuple[list[str], str]]:
    labels = [evaluation.label for evaluation in evaluations]
    for records in zip(*(evaluation.records for evaluation in evaluations), strict=True):
        last: Record = records[-1]
        questions = [("edit prompt", [record.edit for record in records])]
        for name, of in (
            ("paraphrase", [record.paraphrases for record in records]),
            ("neighborhood probe", [record.neighborhood for record in records]),
            ("portability probe", [record.portability for record in records]),
        ):
            questions += [(name, list(answers)) for answers in zip(*of, strict=True)]
        body = "".join(_question(name, answers, labels) for name, answers in questions)
        new = sum(answer.says_new for answer in last.paraphrases)
        marks = _mark(last.edit)
        if last.paraphrases:
            marks += f' <span class="who">paraphrases {new} of {len(last.paraphrases)}</span>'
        case = "" if last.case_id is None else f'<span class="who">{text(last.case_id)}</span>'
        old = "" if last.target_old is None else f' <span class="who">was {text(last.target_old)}</span>'
        fact = f"<bdi>{text(last.edit.prompt, LONGEST)}</bdi> → <b><bdi>{text(last.target_new)}</bdi></b>"
        summary = f"{case}{fact}{old}{marks}"
        yield _kinds(last, questions), f"<details><summary>{summary}</summary>{body}</details>"


def _untouched(evaluations: Sequence[Evaluation]) -> Iterator[tuple[list[str], str]]:
    labels = [evaluation.label for evaluation in evaluations]
    for answers in zip(*(evaluation.untouched for evaluation in evaluations), strict=True):
        last: ProbeAnswer = answers[-1]
        right = "" if last.answer is None else f" → <b><bdi>{text(last.answer)}</bdi></b>"
        summary = f'<span class="who">untouched</span><bdi>{text(last.prompt, LONGEST)}</bdi>{right}{_mark(last)}'
        kinds = ["untouched", *(["probe"] if last.says_answer is False else [])]
        kinds += ["changed"] if answers[0].output != last.output else []
        yield kinds, f"<details><summary>{summary}</summary>{_question('', list(answers), labels)}</details>"


def _kinds(last: Record, questions: Sequence[tuple[str, list[Answer]]]) -> list[str]:
    asked = [last.edit, *last.paraphrases]
    verdicts = {
        "missed": not last.edit.says_new,
        "paraphrase": any(not answer.says_new for answer in last.paraphrases),
        "old": any(answer.says_old for answer in asked),
        "probe": any(answer.says_answer is False for answer in (*last.neighborhood, *last.portability)),
        "changed": any(answers[0].output != answers[-1].output for _, answers in questions),
    }
    return [kind for kind, holds in verdicts.items() if holds]


def _question(name: str, answers: Sequence[Answer | ProbeAnswer], labels: Sequence[str]) -> str:
    """A question and its answers as lines of text, their parts set off by tabs: one element, however many there are.

    Thousands of requests make a page that still opens; the script turns the lines of a request that is opened into
    something prettier. Tabs and newlines of the texts themselves are shown as signs, so that no text can pass for a
    line of the report's.
    """
    first = answers[0]
    right = f"(right: {first.answer})" if isinstance(first, ProbeAnswer) and first.answer is not None else ""
    lines = [(f"{name}:", first.prompt, right)] if name else []
    lines += [
        (_verdict(answer), f"{label}:", answer.output.strip() or "(nothing)")
        for label, answer in zip(labels, answers, strict=True)
    ]
    return f"<p>{NEWLINE.join(TAB.join(_one_line(part) for part in line) for line in lines)}</p>"


TAB, NEWLINE = "\t", "\n"


def _one_line(value: str) -> str:
    signs = value.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\r", " ⏎ ").replace("\t", " ⇥ ")
    return text(signs, LONGEST)


def _verdict(answer: Answer | ProbeAnswer) -> str:
    """The verdict in words with a sign: nothing rests on colour."""
    if isinstance(answer, ProbeAnswer):
        return "·" if answer.says_answer is None else "✓ right" if answer.says_answer else "✗ wrong"
    said = ["✓ new"] if answer.says_new else []
    said += ["↺ old"] if answer.says_old else []
    return " ".join(said) or ("✗ neither" if answer.says_old is not None else "✗ not new")


def _mark(answer: Answer | ProbeAnswer) -> str:
    words = _verdict(answer)
    kind = {"✓": "good", "↺": "warn", "✗": "bad"}.get(words[0])
    return f'<span class="v {kind}">{words}</span>' if kind else ""
