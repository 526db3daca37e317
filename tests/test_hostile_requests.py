"""Odd prompts, too few and too many requests, and models whose numbers run over: each has an outcome that is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.bench.evaluation import evaluate, load_evaluation, save_evaluation
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.rsft import NonFiniteLossError, RSFTSettings, rsft
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import QUICK, REQUESTS, Bench

ODD = {
    "right to left": ("عاصمة فرنسا هي", "فرنسا", "روما"),
    "emoji": ("The 🇫🇷 capital 👩‍👩‍👧 of France is", "France", "🏛️ Rome"),
    "control characters": ("The\x00 capital\x1b[31m of\x7f France is", "France", "Ro\x07me"),
    "line ends": ("The capital\r\nof\u2028 France\x85 is", "France", "Rome\r"),
    "byte-order mark": ("\ufeffThe capital of France is", "France", "Rome"),
    "combining": ("The c\u0301a\u0308pital of France is", "France", "Ro\u0302me"),
    "repeated subject": ("France, France: the capital of France is", "France", "Rome"),
    "the subject alone": ("France", "France", "Rome"),
    "spaces": ("  The capital of  France   is  ", "France", "Rome"),
}
TRAINED = RSFTSettings(layer=1, epochs=1, steps=1)


def requests() -> list[EditRequest]:
    return [
        EditRequest(prompt=prompt, subject=subject, target_new=new, case_id=name)
        for name, (prompt, subject, new) in ODD.items()
    ]


def test_odd_text_goes_through_every_part(llama_bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps(request.model_dump(exclude_defaults=True), ensure_ascii=False) for request in requests()]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    read = read_requests(path)
    assert read == requests()
    write_requests(path, read)
    assert read_requests(path) == requests()
    before, editor = llama_bench.weights(), llama_bench.editor(QUICK)
    report = editor.edit(read)
    assert [outcome.name for outcome in report.requests] == [r.name(i) for i, r in enumerate(read)]
    evaluation = evaluate(llama_bench.model, llama_bench.tokenizer, read, max_new_tokens=3, progress=False)
    assert [record.edit.prompt for record in evaluation.records] == [request.prompt for request in read]
    save_evaluation(evaluation, tmp_path / "results")
    assert load_evaluation(tmp_path / "results") == evaluation
    editor.revert_all()
    assert llama_bench.holds(before)
    trained = rsft(llama_bench.model, llama_bench.tokenizer, read, TRAINED)
    assert len(trained.samples) == len(read)


LONG = EditRequest(prompt="The capital of France, " * 4348 + "is", subject="France", target_new="Rome", case_id="long")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        pytest.param([LONG], r"2\d{4} tokens.*, and the model reads 128: shorten", id="100,000 characters"),
        pytest.param([], "no edit requests: give at least one|nothing to evaluate: give requests", id="none"),
        pytest.param(
            [REQUESTS[0], EditRequest(prompt="The capital of Italy is", target_new="Oslo", case_id="no subject")],
            "case 'no subject'.*has no subject",
            id="no subject",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_every_part(
    asked: list[EditRequest], message: str, llama_bench: Bench, gpt2_bench: Bench
) -> None:
    before, tokenizer = llama_bench.weights(), llama_bench.tokenizer
    parts: dict[str, Callable[[], object]] = {
        "edit": lambda: llama_bench.editor(QUICK).edit(asked),
        "R-SFT": lambda: rsft(llama_bench.model, tokenizer, asked, TRAINED),
        # beyond their context, one would fail, and the other answer nonsense
        "evaluation": lambda: evaluate(gpt2_bench.model, gpt2_bench.tokenizer, asked, max_new_tokens=2),
        "evaluation of a Llama": lambda: evaluate(llama_bench.model, tokenizer, asked, max_new_tokens=2),
    }
    for name, part in parts.items():
        if name == "edit" or "subject" not in message:  # what edits by subjects needs them
            with pytest.raises(CorsaError, match=message):
                part()
    assert llama_bench.holds(before)


def test_one_request_and_ten_thousand(tmp_path: Path) -> None:
    many = [
        EditRequest(prompt=f"The capital of land {n} is", subject=f"land {n}", target_new="Oslo") for n in range(10_000)
    ]
    path = tmp_path / "many.jsonl"
    for count in (1, len(many)):
        write_requests(path, many[:count])
        assert read_requests(path) == many[:count]
    with path.open("a") as file:
        file.write(json.dumps({"prompt": many[4711].prompt, "target_new": "Rome"}) + "\n")
    with pytest.raises(CorsaError, match=r"lines 4712 and 10001: contradiction"):
        read_requests(path)


def _edited(bench: Bench) -> object:
    statistics = collect_statistics(bench.model, bench.tokenizer, TEXTS, (0, 1), n_tokens=2000, sample_size=8)
    return replace(bench, statistics=statistics).editor(QUICK).edit(REQUESTS)


@pytest.mark.parametrize("scale", [1e37, float("nan")], ids=["overflow", "nan"])
def test_a_model_whose_logits_are_no_numbers(scale: float, llama_bench: Bench, caplog: Any) -> None:
    """No edit of it is made, no training goes on, and what is measured says so."""
    model = llama_bench.model
    with torch.no_grad():
        head = model.lm_head.weight.clone() * scale
        head[3:5] *= 100
        model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"case 'france'.*the loss is nan"):
        rsft(model, llama_bench.tokenizer, REQUESTS, TRAINED)
    measured = evaluate(model, llama_bench.tokenizer, REQUESTS, max_new_tokens=2, progress=False)
    assert measured.summary()["log_prob_new"].mean != measured.summary()["log_prob_new"].mean
    assert re.search(r"log-probabilities of \d of 3 requests are not finite numbers", caplog.text)
    with pytest.raises(CorsaError, match=r"NaN|infinity|not finite"):
        _edited(llama_bench)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)
