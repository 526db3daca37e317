"""EasyEdit's request dictionaries as edit requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from corsa_plugins.data.requests import EditRequest, RequestError, normalise_whitespace

__all__ = ["to_requests"]

_NO_TRUTH = ("<|endoftext|>",)
"""What EasyEdit's 2023 release puts where no ground truth is given."""

_TESTS = ("rephrase_prompt", "locality", "portability")


def to_requests(dictionaries: Iterable[Mapping[str, Any]]) -> list[EditRequest]:
    """Edit requests from the dictionaries that ``BaseEditor`` hands to a method.

    Read are ``prompt``, in which ``{}`` stands for the subject if it does not have it otherwise, ``target_new``,
    ``subject``, ``ground_truth``, ``case_id`` and ``validation_prompts``. What is there to test with
    (``rephrase_prompt``, ``locality``, ``portability``) stays behind: an editor that has never seen it cannot fit it.

    Raises:
        RequestError: Requests that cannot be used, all of them named, by place and prompt.
    """
    requests, problems = [], []
    for index, dictionary in enumerate(dictionaries):
        try:
            requests.append(_request(dictionary))
        except (ValidationError, RequestError) as error:
            prompt = dictionary.get("prompt") if isinstance(dictionary, Mapping) else dictionary
            problems.append(f"request {index} ({prompt!r}): {_reasons(error)}")
    if problems:
        raise RequestError(problems, f"{len(problems)} requests cannot be used")
    if not requests:
        raise RequestError("there are no requests to edit: give at least one")
    return requests


def _request(dictionary: Mapping[str, Any]) -> EditRequest:
    if not isinstance(dictionary, Mapping):
        raise RequestError("it should be a dictionary with prompt, subject and target_new")
    fields: dict[str, Any] = {name: dictionary.get(name) for name in ("prompt", "target_new", "subject", "case_id")}
    prompt, target, subject = fields["prompt"], fields["target_new"], fields["subject"]
    if isinstance(prompt, str) and isinstance(subject, str) and subject not in prompt:
        fields["prompt"] = prompt.replace("{}", subject)
    if isinstance(target, str):
        fields["target_new"] = target.lstrip(" ")
    validation = dictionary.get("validation_prompts") or ()
    if validation:
        _refuse_tests(validation, dictionary)
    return EditRequest(
        **fields, target_old=_truth(dictionary.get("ground_truth"), fields["target_new"]), validation_prompts=validation
    )


def _truth(truth: Any, target: Any) -> str | None:
    """The outdated answer, if it is one: a method that can do without is not to fail for want of it."""
    if not isinstance(truth, str) or not truth.strip() or truth in _NO_TRUTH:
        return None
    same = isinstance(target, str) and normalise_whitespace(truth) == normalise_whitespace(target)
    return None if same else truth.strip(" ")


def _refuse_tests(validation: Iterable[str], dictionary: Mapping[str, Any]) -> None:
    tests = {normalise_whitespace(text) for name in _TESTS for text in _texts(dictionary.get(name))}
    for prompt in validation:
        if isinstance(prompt, str) and normalise_whitespace(prompt) in tests:
            raise RequestError(
                f"the validation prompt {prompt!r} is a test prompt too: choosing settings on it would inflate the "
                "results; remove it from one of them"
            )


def _texts(value: Any) -> Iterable[str]:
    """Every prompt in a test field: a string, a list of them, or dictionaries with prompts inside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            if name != "ground_truth":
                yield from _texts(one)


def _reasons(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))} {detail['msg']}".strip() for detail in error.errors(include_url=False)
    )
