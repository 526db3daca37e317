"""The list of requests: every prompt with the answers of each evaluation. A script narrows it; it needs none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record
from corsa_plugins.bench.evaluation.same_questions import ReportError, check_same_questions
from corsa_plugins.report.render import render, shortened
from corsa_plugins.report.report import Report
from corsa_plugins.report.sections.section import Section

__all__ = ["ANSWERS", "listing"]

LONGEST = 400
"""Characters of an output that are shown; the whole of it is in the records."""

KINDS = {
    "missed": "the new answer is missing on the edit prompt",
    "paraphrase": "the new answer is missing on a paraphrase",
    "old": "the old answer comes",
    "probe": "a probe is answered wrong",
    "changed": "an answer differs from the first column's",
    "untouched": "untouched facts",
}
"""What the list can be narrowed to."""

TAB, NEWLINE = "\t", "\n"


@dataclass(frozen=True)
class _Verdict:
    """A verdict in words with a sign: nothing rests on colour."""

    words: str

    @property
    def kind(self) -> str:
        """Its class in the style sheet; a mere dot has none."""
        return {"✓": "good", "↺": "warn", "✗": "bad"}.get(self.words[0], "")


@dataclass(frozen=True)
class _Item:
    """A line of the list, and what opens below it.

    Attributes:
        kinds: What holds of it: one of :data:`KINDS`, with the place of the label it holds of in front.
        who: Before the prompt.
        prompt: What it is about.
        target: The right answer.
        after: Behind the answer.
        verdict: Where there is one model to judge.
        tally: Of several models, or of paraphrases.
        questions: Each with all answers, as lines of text.
    """

    kinds: Sequence[str]
    who: str
    prompt: str
    target: str | None
    after: str
    verdict: _Verdict | None
    tally: str
    questions: Sequence[str]

    def holds(self, kind: str, column: int) -> bool:
        return kind in self.kinds or f"{column}.{kind}" in self.kinds


@dataclass(frozen=True)
class _Columns:
    """Evaluations of the same questions that differ, and the labels of each."""

    evaluations: Sequence[Evaluation]
    labels: Sequence[Sequence[str]]

    @property
    def names(self) -> list[str]:
        """What the answers of each are introduced by: its first label."""
        return [evaluation.label for evaluation in self.evaluations]


def listing(groups: Sequence[Sequence[Evaluation]], remark: str = "") -> Markup:
    """The section's HTML: a search form, which a script brings to life, and a list that needs none.

    Args:
        groups: Each of evaluations of the same prompts, at least one; the first group's last is the one whose verdicts
            the list is narrowed by until another is chosen. One that is in a group under two labels (the same tuples of
            records) is shown once, under the first, and its verdicts count for both.
        remark: Above it.
    """
    groups = [_told_apart(group) for group in groups]
    labels = list(dict.fromkeys(evaluation.label for group in groups for evaluation in group))
    judged = labels.index(groups[0][-1].label)
    items = [item for group in groups for item in (*_requests(group, labels), *_untouched(group, labels))]
    counts = {kind: sum(item.holds(kind, judged) for item in items) for kind in KINDS}
    several = len(labels) > 2
    return render(
        "answers.html",
        remark=remark,
        items=items,
        kinds=[(kind, title, counts[kind]) for kind, title in KINDS.items() if counts[kind] or several],
        labels=labels if several else [],
        judged=judged,
    )


def _told_apart(group: Sequence[Evaluation]) -> list[Evaluation]:
    """The group with another label for each: two models may have folders of one name."""
    apart: list[Evaluation] = []
    for evaluation in group:
        label, number = evaluation.label, 1
        while label in {other.label for other in apart}:
            number += 1
            label = f"{evaluation.label} ({number})"
        apart.append(replace(evaluation, label=label))
    return apart


def _columns(group: Sequence[Evaluation]) -> _Columns:
    evaluations: list[Evaluation] = []
    labels: list[list[str]] = []
    for evaluation in group:
        for other, its in zip(evaluations, labels, strict=True):
            if evaluation.records is other.records and evaluation.untouched is other.untouched:
                its.append(evaluation.label)
                break
        else:
            evaluations.append(evaluation)
            labels.append([evaluation.label])
    return _Columns(evaluations, labels)


def _requests(group: Sequence[Evaluation], labels: Sequence[str]) -> Iterator[_Item]:
    columns = _columns(group)
    for records in zip(*(evaluation.records for evaluation in columns.evaluations), strict=True):
        last: Record = records[-1]
        questions = [("edit prompt", [record.edit for record in records])]
        for name, of in (
            ("paraphrase", [record.paraphrases for record in records]),
            ("neighborhood probe", [record.neighborhood for record in records]),
            ("portability probe", [record.portability for record in records]),
        ):
            questions += [(name, list(answers)) for answers in zip(*of, strict=True)]
        judged = records[1:] if len(records) > 2 else records[-1:]
        yield _Item(
            kinds=[
                f"{labels.index(label)}.{kind}"
                for column, (its, record) in enumerate(zip(columns.labels, records, strict=True))
                for label in its
                for kind in _kinds(record, [(answers[0], answers[column]) for _, answers in questions])
            ],
            who="" if last.case_id is None else str(last.case_id),
            prompt=shortened(last.edit.prompt, LONGEST),
            target=last.target_new,
            after="" if last.target_old is None else f"was {last.target_old}",
            verdict=_verdict(last.edit) if len(judged) == 1 else None,
            tally=_tally(judged),
            questions=[_question(name, answers, columns.names) for name, answers in questions],
        )


def _tally(judged: Sequence[Record]) -> str:
    """What became of a request: the paraphrases of one model, else how many models know it."""
    if len(judged) > 1:
        return f"new answer in {sum(record.edit.says_new for record in judged)} of {len(judged)}"
    paraphrases = judged[0].paraphrases
    new = sum(answer.says_new for answer in paraphrases)
    return f"paraphrases {new} of {len(paraphrases)}" if paraphrases else ""


def _untouched(group: Sequence[Evaluation], labels: Sequence[str]) -> Iterator[_Item]:
    columns = _columns(group)
    for answers in zip(*(evaluation.untouched for evaluation in columns.evaluations), strict=True):
        last: ProbeAnswer = answers[-1]
        several = len(answers) > 2 and last.answer is not None
        right = sum(bool(answer.says_answer) for answer in answers[1:])
        kinds = ["untouched"]
        for label, answer in ((label, a) for its, a in zip(columns.labels, answers, strict=True) for label in its):
            kinds += [f"{labels.index(label)}.probe"] if answer.says_answer is False else []
            kinds += [f"{labels.index(label)}.changed"] if answers[0].output != answer.output else []
        yield _Item(
            kinds=kinds,
            who="untouched",
            prompt=shortened(last.prompt, LONGEST),
            target=last.answer,
            after=f"or {shortened(', or '.join(last.aliases), LONGEST)}" if last.aliases else "",
            verdict=None if several else _verdict(last),
            tally=f"right in {right} of {len(answers) - 1}" if several else "",
            questions=[_question("", answers, columns.names)],
        )


def _kinds(record: Record, answers: Sequence[tuple[Answer | ProbeAnswer, Answer | ProbeAnswer]]) -> list[str]:
    """What holds of a request by one model's answers; each of ``answers`` is the first model's and this one's."""
    verdicts = {
        "missed": not record.edit.says_new,
        "paraphrase": any(not answer.says_new for answer in record.paraphrases),
        "old": any(answer.says_old for answer in (record.edit, *record.paraphrases)),
        "probe": any(answer.says_answer is False for answer in (*record.neighborhood, *record.portability)),
        "changed": any(first.output != own.output for first, own in answers),
    }
    return [kind for kind, holds in verdicts.items() if holds]


def _question(name: str, answers: Sequence[Answer | ProbeAnswer], labels: Sequence[str]) -> str:
    """A question and its answers as lines of text, their parts set off by tabs: one element, however many there are.

    Thousands of requests make a page that still opens; the script turns the lines of a request that is opened into
    something prettier. Tabs and newlines of the texts themselves are shown as signs, so that no text can pass for a
    line of the report's.
    """
    first = answers[0]
    right = ""
    if isinstance(first, ProbeAnswer) and first.answer is not None:
        right = f"(right: {', or '.join((first.answer, *first.aliases))})"
    lines = [(f"{name}:", first.prompt, right)] if name else []
    lines += [
        (_verdict(answer).words, f"{label}:", answer.output.strip() or "(nothing)")
        for label, answer in zip(labels, answers, strict=True)
    ]
    return NEWLINE.join(TAB.join(_one_line(part) for part in line) for line in lines)


def _one_line(value: str) -> str:
    signs = value.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\r", " ⏎ ").replace("\t", " ⇥ ")
    return shortened(signs, LONGEST)


def _verdict(answer: Answer | ProbeAnswer) -> _Verdict:
    if isinstance(answer, ProbeAnswer):
        return _Verdict("·" if answer.says_answer is None else "✓ right" if answer.says_answer else "✗ wrong")
    said = ["✓ new"] if answer.says_new else []
    said += ["↺ old"] if answer.says_old else []
    return _Verdict(" ".join(said) or ("✗ neither" if answer.says_old is not None else "✗ not new"))


def _render(report: Report) -> Markup:
    if report.answers is not None:
        for group in report.answers:
            for evaluation in group[1:]:
                check_same_questions(group[0], evaluation)
        return listing(report.answers)
    last, alike, left_out = report.evaluations[-1], [], []
    for evaluation in report.evaluations[:-1]:
        try:
            check_same_questions(evaluation, last)
            alike.append(evaluation)
        except ReportError:
            left_out.append(evaluation.label)
    remark = f"Asked other questions, and not shown here: {', '.join(left_out)}." if left_out else ""
    return listing([[*alike, last]], remark)


def _needs(report: Report) -> Report | None:
    answers = report.evaluations if report.answers is None else report.answers
    return report if answers else None


ANSWERS = Section(name="answers", title="Requests and answers", needs=_needs, render=_render, closing=True)
