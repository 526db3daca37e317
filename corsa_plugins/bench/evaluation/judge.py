"""From what a model said to verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from corsa_plugins.bench.evaluation.records import Answer, ProbeAnswer, Record
from corsa_plugins.data.answers import contains_answer, same_answer
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.model.asking import cut_answer

__all__ = ["Judge", "Score"]


class Score(Protocol):
    """How a model rates an answer, whoever asked it: :class:`~corsa_plugins.model.asking.TargetScore` of ours."""

    @property
    def log_prob(self) -> float:
        """log p(answer | prompt) in nats, summed over tokens."""

    @property
    def top1(self) -> bool:
        """Whether it is the greedy continuation of the prompt."""


@dataclass(frozen=True)
class Judge:
    """Makes records of requests and facts.

    Attributes:
        outputs: What the model generated, by prompt.
        scores: Of targets, by prompt and target.
        texts: Longer texts, by edit prompt, where they were asked for.
        whole_output: Whether the answer is the whole output, rather than its first sentence.
    """

    outputs: Mapping[str, str]
    scores: Mapping[tuple[str, str], Score]
    texts: Mapping[str, str]
    whole_output: bool

    def record(self, index: int, request: EditRequest) -> Record:
        """Everything that was answered about a request, the ``index``-th of its list."""
        return Record(
            index=index,
            case_id=request.case_id,
            target_new=request.target_new,
            target_old=request.target_old,
            edit=self.answer(request.prompt, request),
            paraphrases=tuple(self.answer(prompt, request) for prompt in request.paraphrases),
            neighborhood=tuple(self.probe(probe, request.target_new) for probe in request.neighborhood),
            portability=tuple(self.probe(probe) for probe in request.portability),
            continuation=self.texts.get(request.prompt),
        )

    def judged(self, prompt: str) -> str:
        """The answer that is judged."""
        output = self.outputs[prompt]
        return output if self.whole_output else cut_answer(output)

    def says(self, prompt: str, target: str) -> bool:
        """Whether the answer has the target in it."""
        return contains_answer(self.judged(prompt), target)

    def answer(self, prompt: str, request: EditRequest) -> Answer:
        """What was answered to one of a request's own prompts."""
        new = self.scores[prompt, request.target_new]
        old = self.scores[prompt, request.target_old] if request.target_old else None
        return Answer(
            prompt=prompt,
            output=self.outputs[prompt],
            says_new=self.says(prompt, request.target_new),
            says_old=self.says(prompt, request.target_old) if request.target_old else None,
            top1_new=new.top1,
            top1_old=old.top1 if old else None,
            log_prob_new=new.log_prob,
            log_prob_old=old.log_prob if old else None,
        )

    def probe(self, probe: Probe, target_new: str | None = None) -> ProbeAnswer:
        """What was answered to a probe; ``target_new`` is that of the request whose neighborhood it is of."""
        if probe.answer is None:
            return ProbeAnswer(prompt=probe.prompt, answer=None, output=self.outputs[probe.prompt])
        score = self.scores[probe.prompt, probe.answer]
        says_itself, said_alias = self.says(probe.prompt, probe.answer), None
        if not says_itself:
            judged = self.judged(probe.prompt)
            said_alias = next((alias for alias in probe.aliases if contains_answer(judged, alias)), None)
        # Where target_new is a right answer as well, that it is likely is no damage done.
        new_is_right = target_new is not None and any(
            same_answer(target_new, right) for right in (probe.answer, *probe.aliases)
        )
        return ProbeAnswer(
            prompt=probe.prompt,
            answer=probe.answer,
            output=self.outputs[probe.prompt],
            says_answer=says_itself or said_alias is not None,
            top1=score.top1,
            log_prob=score.log_prob,
            log_prob_new=(
                self.scores[probe.prompt, target_new].log_prob if target_new is not None and not new_is_right else None
            ),
            aliases=probe.aliases,
            said_alias=said_alias,
        )
