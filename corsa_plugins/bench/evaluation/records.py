"""What a model answered, request by request."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Answer", "ProbeAnswer", "Record"]


class _Saved(BaseModel):
    # NaN from a damaged model must survive the file it is reported in
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Answer(_Saved):
    """What the model did with one prompt of a request (its edit prompt or a paraphrase).

    Attributes:
        prompt: What was asked.
        output: What the model generated, greedily, as it came.
        says_new: target_new is in the answer (:func:`~corsa_plugins.data.answers.contains_answer`).
        says_old: target_old is in the answer; ``None`` if the request has none.
        top1_new: target_new is the model's top-1 prediction, over all of its tokens.
        top1_old: The same for target_old.
        log_prob_new: log p(target_new | prompt) in nats, summed over tokens.
        log_prob_old: The same for target_old.
    """

    prompt: str
    output: str
    says_new: bool
    says_old: bool | None
    top1_new: bool
    top1_old: bool | None
    log_prob_new: float
    log_prob_old: float | None


class ProbeAnswer(_Saved):
    """What the model did with a probe; the verdicts are ``None`` if the probe has no answer to compare with.

    Attributes:
        prompt: What was asked.
        answer: The right answer.
        output: What the model generated.
        says_answer: The right answer (:func:`~corsa_plugins.data.answers.contains_answer`) or one of
            ``aliases``, likewise, is in the answer given.
        top1: ``answer`` is the model's top-1 prediction, over all of its tokens; aliases do not count.
        log_prob: log p(answer | prompt) in nats, of ``answer`` alone.
        log_prob_new: For a neighborhood probe, log p(target_new | prompt) of its request; ``None`` if that is a right
            answer here too, the answer itself or an alias.
        aliases: The other answers that counted as right.
        said_alias: The first alias in the answer given, where ``answer`` itself is not in it.
    """

    prompt: str
    answer: str | None
    output: str
    says_answer: bool | None = None
    top1: bool | None = None
    log_prob: float | None = None
    log_prob_new: float | None = None
    aliases: tuple[str, ...] = ()
    said_alias: str | None = None


class Record(_Saved):
    """One request with everything the model answered.

    Attributes:
        continuation: What the model wrote behind the edit prompt when asked for a longer text; ``None`` if it was not.
    """

    index: int
    case_id: str | int | None
    target_new: str
    target_old: str | None
    edit: Answer
    paraphrases: tuple[Answer, ...]
    neighborhood: tuple[ProbeAnswer, ...]
    portability: tuple[ProbeAnswer, ...]
    continuation: str | None = None
