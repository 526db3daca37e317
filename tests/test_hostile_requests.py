"""Odd prompts, too few and too many requests, and models whose numbers run over: each has an outcome that is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit.checks import check_edit
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.bench.evaluation import evaluate, load_evaluation, save_evaluation
from corsa_plugins.data.formats.convert import convert_to_requests
from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.in_context.store import FactStore, InContextSettings
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.methods.locft.train import locft
from corsa_plugins.model.tokenization import join, separate
from corsa_plugins.rsft import NonFiniteLossError, RSFTSettings, rsft
from corsa_plugins.rsft.samples import make_samples
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import QUICK, REQUESTS, Bench
from tests.support.collecting import plain_keys, plain_rows

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
TAUGHT = LocFTSettings(layer=1, epochs=1)


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


ADAPTERS = ("corsa", "lora-sft")


def train_adapter(
    bench: Bench, method: str, asked: Sequence[EditRequest], folder: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The report of a training of one step, and the adapter's tensors; the model is given back as it was."""
    pytest.importorskip("trl")
    from peft import get_peft_model_state_dict

    from corsa_plugins.methods.registry import make_method
    from trl_ext.methods.settings import AdapterSettings

    training = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "bf16": False}
    settings = AdapterSettings({**training, "gradient_checkpointing": False, "use_cpu": True}, history_looks=0)
    before = bench.weights()
    session = make_method(method, settings=settings).start(bench.model, bench.tokenizer, seed=0)
    try:
        session.update(asked, folder)
        tensors = {name: value.clone() for name, value in get_peft_model_state_dict(session.model).items()}
    finally:
        session.close()
    assert bench.holds(before)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report, tensors


@pytest.mark.parametrize("method", ADAPTERS)
def test_odd_text_is_trained_on(method: str, llama_bench: Bench, tmp_path: Path) -> None:
    asked = [request.model_copy(update={"target_old": "Oslo"}) for request in requests()]
    report, tensors = train_adapter(llama_bench, method, asked, tmp_path / "all")
    names = [request["name"] for request in report["requests"]]
    assert names == [request.name(index) for index, request in enumerate(asked)]
    moved = [value for name, value in tensors.items() if "lora_B" in name]
    assert moved
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert any(bool(value.any()) for value in moved)


@pytest.mark.parametrize("name", ODD)
def test_odd_text_is_trained_on_as_it_is(name: str, llama_bench: Bench) -> None:
    """Nothing of a prompt or an answer is lost or replaced on its way to the tokens that are trained on."""
    tokenizer = llama_bench.tokenizer
    (request,) = [each for each in requests() if each.case_id == name]
    (row,) = to_preference_rows([request.model_copy(update={"target_old": "Oslo"})])
    (sample,) = make_samples(llama_bench.model, tokenizer, [request], TRAINED)
    joined = join(tokenizer, request.prompt, request.target_new)
    written = separate(request.prompt, request.target_new)  # a space at the end of a prompt is the answer's
    assert (row["prompt"], row["chosen"]) == written
    assert row["prompt"].rstrip(" ") == request.prompt.rstrip(" ")
    assert tokenizer.decode([*joined.prompt_ids, *joined.target_ids], skip_special_tokens=True) == "".join(written)
    assert tuple(sample.prompt_ids) == tuple(joined.prompt_ids)


def test_odd_text_is_taught_breadth_first(llama_bench: Bench) -> None:
    before = llama_bench.weights()
    report = locft(llama_bench.model, llama_bench.tokenizer, requests(), LocFTSettings(layer=1, epochs=2, batch_size=4))
    assert report.steps == 6
    (name,) = report.parameters
    after = llama_bench.weights()
    assert {each for each, value in after.items() if not torch.equal(value, before[each])} == {name}
    assert after[name].isfinite().all()


def test_statistics_of_odd_text_are_those_of_its_tokens(llama_bench: Bench) -> None:
    model, tokenizer = llama_bench.model, llama_bench.tokenizer
    texts = [prompt for prompt, _, _ in ODD.values()]
    found = collect_statistics(model, tokenizer, texts, (0, 1), n_tokens=10**6, length=24, pack=False)
    rows = plain_rows(tokenizer, texts, 24, False, 10**6)
    assert found.count(0) == sum(map(len, rows))
    for layer in (0, 1):
        keys = plain_keys(model, rows, layer)
        torch.testing.assert_close(found.moment(layer), keys @ keys.mT / keys.shape[1], rtol=1e-4, atol=1e-7)


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
    asked: list[EditRequest], message: str, llama_bench: Bench, gpt2_bench: Bench, tmp_path: Path
) -> None:
    before, tokenizer = llama_bench.weights(), llama_bench.tokenizer
    parts: dict[str, Callable[[], object]] = {
        "edit": lambda: llama_bench.editor(QUICK).edit(asked),
        "R-SFT": lambda: rsft(llama_bench.model, tokenizer, asked, TRAINED),
        "LocFT-BF": lambda: locft(llama_bench.model, tokenizer, asked, TAUGHT),
        "CoRSA": lambda: train_adapter(llama_bench, "corsa", asked, tmp_path / "corsa"),
        "LoRA SFT": lambda: train_adapter(llama_bench, "lora-sft", asked, tmp_path / "lora"),
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


def test_ten_thousand_requests_where_none_is_run(llama_bench: Bench, tmp_path: Path) -> None:
    """What looks at all of them takes seconds, and finds the one that is asked for, or that is wrong."""
    many = [
        EditRequest(
            prompt=f"The capital of land {n} is", subject=f"land {n}", target_new=f"city {n}", target_old="Oslo"
        )
        for n, land in ((n, f"land {n}") for n in range(10_000))
    ]
    store = FactStore(many, InContextSettings())
    assert store.about("What is the capital of land 4711?") == [many[4711]]
    assert len(store.about("Do land 1, land 22, land 333, land 4444 and land 55 share a border?")) == 4
    rows = to_preference_rows(many)
    assert [row["prompt"] for row in rows] == [request.prompt for request in many]
    assert len({row["chosen"] for row in rows}) == len(many)

    bench, settings = llama_bench, llama_bench.settings
    check_edit(bench.model, bench.tokenizer, many, [], settings)
    nameless = [request.model_copy(update={"subject": None}) if n % 2 else request for n, request in enumerate(many)]
    with pytest.raises(CorsaError, match=r"5000 edit requests cannot be edited") as caught:
        check_edit(bench.model, bench.tokenizer, nameless, [], settings)
    assert len(str(caught.value)) < 10_000

    records = [
        {
            "case_id": n, "requested_rewrite": {
                "prompt": "The capital of {} is", "subject": f"land {n}", "target_new": {"str": f"city {n}"},
                "target_true": {"str": "Oslo"},
            },
            "paraphrase_prompts": [], "neighborhood_prompts": [], "attribute_prompts": [], "generation_prompts": [],
        }
        for n in range(len(many))
    ]  # fmt: skip
    (tmp_path / "counterfact.json").write_text(json.dumps(records))
    convert_to_requests(tmp_path / "counterfact.json", tmp_path / "facts.jsonl", name="counterfact")
    read = read_requests(tmp_path / "facts.jsonl")
    assert [(r.prompt, r.subject, r.target_new) for r in read] == [(r.prompt, r.subject, r.target_new) for r in many]


def test_one_request_through_every_part(llama_bench: Bench, tmp_path: Path) -> None:
    bench, one = llama_bench, [REQUESTS[0].model_copy(update={"target_old": "Oslo"})]
    before, editor = bench.weights(), bench.editor(QUICK)
    assert len(editor.edit(one).requests) == 1
    editor.revert_all()
    assert bench.holds(before)
    for method in ADAPTERS:
        assert len(train_adapter(bench, method, one, tmp_path / method)[0]["requests"]) == 1
    measured = evaluate(bench.model, bench.tokenizer, one, max_new_tokens=2, progress=False)
    assert len(measured.records) == 1
    assert FactStore(one, InContextSettings()).about(one[0].prompt) == one
    for train in (
        lambda: rsft(bench.model, bench.tokenizer, one, TRAINED),
        lambda: locft(bench.model, bench.tokenizer, one, TAUGHT),
    ):
        trained = bench.weights()
        train()
        assert not bench.holds(trained)
        bench.load(before)


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
    with pytest.raises(NonFiniteLossError, match=r"loss is (nan|inf)"):
        locft(model, llama_bench.tokenizer, REQUESTS, TAUGHT)
    measured = evaluate(model, llama_bench.tokenizer, REQUESTS, max_new_tokens=2, progress=False)
    assert measured.summary()["log_prob_new"].mean != measured.summary()["log_prob_new"].mean
    assert re.search(r"log-probabilities of \d of 3 requests are not finite numbers", caplog.text)
    with pytest.raises(CorsaError, match=r"NaN|infinity|not finite"):
        _edited(llama_bench)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("scale", [1e37, float("nan")], ids=["overflow", "nan"])
def test_an_adapter_of_a_model_whose_logits_are_no_numbers(
    scale: float, method: str, llama_bench: Bench, tmp_path: Path
) -> None:
    """Nothing is saved that holds NaN, and the model is as it was."""
    model = llama_bench.model
    with torch.no_grad():
        head = model.lm_head.weight.clone() * scale
        head[3:5] *= 100
        model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = [request.model_copy(update={"target_old": "Oslo"}) for request in REQUESTS]
    with pytest.raises(CorsaError, match=r"(?i)nan|infini|not finite"):
        train_adapter(llama_bench, method, asked, tmp_path / "update")
    assert not list(tmp_path.rglob("adapter_model.safetensors"))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)
