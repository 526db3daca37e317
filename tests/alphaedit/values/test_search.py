"""Value vectors: equal to the published optimisation, whatever is batched, skipped or finished early."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.rows import rewriting_rows
from corsa_plugins.alphaedit.values import search as values_module
from corsa_plugins.alphaedit.values.loss import BatchLoss, exact_reuse
from corsa_plugins.alphaedit.values.search import NonFiniteValueError, Values, ValueSettings, find_values
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.running import frozen
from corsa_plugins.model.tokenization import join
from tests.oracles import values as oracle
from tests.support.families import CONTEXTS, NAMES, REQUESTS, family

# At these the limit on the norm is met, or some requests end early and others do not; the tests check that they do.
CLAMPED = ValueSettings(steps=6, lr=0.3, clamp=0.1, weight_decay=0.01)
EARLY = ValueSettings(steps=8, lr=0.5, clamp=20.0, weight_decay=0.05, stop_loss=6.5, kl_factor=0.2)
TAUGHT = ValueSettings(steps=20, lr=0.3, clamp=10.0, lr_unit="relative", weight_decay=0.01, stop_loss=2.0)
KNOWN = [
    EditRequest(prompt="The capital of France is", target_new="Rome", subject="France"),
    EditRequest(prompt="Anna Berg was born in", target_new="Paris", subject="Anna Berg"),
    EditRequest(prompt="The capital of Italy is", target_new="Madrid", subject="Italy"),
]


def literal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layer: int, settings: ValueSettings, number: int
) -> Any:
    parts, one = find_architecture(model), REQUESTS[number]
    early = None
    if settings.loss_layer is not None:
        early = (parts.block(settings.loss_layer).module, parts.norm.module, parts.head.module)
    return oracle.value(
        model, tokenizer, one.prompt, one.subject, one.target_new, CONTEXTS, parts.block(layer).module,
        steps=settings.steps, lr=settings.lr, weight_decay=settings.weight_decay, clamp=settings.clamp,
        kl_factor=settings.kl_factor, stop_loss=settings.stop_loss, early=early,
    )  # fmt: skip


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
    settings: ValueSettings,
    tolerance: float,
    n: int = 3,
) -> Values:
    """The product on ``n`` requests at once against the oracle on each, relative to the size of delta."""
    found = find_values(model, tokenizer, REQUESTS[:n], layer, CONTEXTS, settings)
    for number in range(n):
        vector, initial, loss, steps, probability = literal(model, tokenizer, layer, settings, number)
        assert (vector - initial).norm() > 0
        assert (found.vectors[:, number] - vector).norm() < tolerance * (vector - initial).norm()
        assert (found.initial[:, number] - initial).norm() < tolerance * initial.norm()
        assert abs(float(found.loss[number]) - loss) < tolerance * 10
        assert int(found.steps[number]) == steps
        assert abs(float(found.probability[number]) - probability) < tolerance * 10
    return found


@pytest.mark.parametrize("reuse", [True, False])
def test_is_the_published_optimisation_in_float64(tiny_tokenizer: PreTrainedTokenizerFast, reuse: bool) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    found = compare(model, tiny_tokenizer, 0, replace(CLAMPED, reuse_prefix=reuse), 1e-9)
    norms = (found.vectors - found.initial).norm(dim=0) / found.initial.norm(dim=0)
    assert torch.allclose(norms, torch.full_like(norms, 0.1))
    found = compare(model, tiny_tokenizer, 1, replace(EARLY, reuse_prefix=reuse), 1e-9)
    steps = found.steps.tolist()
    assert len(set(steps)) > 1
    assert min(steps) < EARLY.steps - 1
    assert max(steps) == EARLY.steps - 1


@pytest.mark.parametrize(("layer", "loss_layer"), [(0, 1), (0, 2), (1, 2)])
def test_an_earlier_loss_layer_reads_the_target_there(
    tiny_tokenizer: PreTrainedTokenizerFast, layer: int, loss_layer: int
) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(EARLY, stop_loss=0.0)
    found = compare(model, tiny_tokenizer, layer, replace(settings, loss_layer=loss_layer), 1e-9)
    at_the_end = find_values(model, tiny_tokenizer, REQUESTS, layer, CONTEXTS, settings)
    assert torch.allclose(found.vectors, at_the_end.vectors) == (loss_layer == 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_reuses_all_and_is_the_literal_optimisation(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = family(name, len(tiny_tokenizer))
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    settings = ValueSettings(steps=5, lr=0.3, clamp=4.0, weight_decay=0.01)
    with frozen(model):
        assert exact_reuse(find_architecture(model), 1, rows, settings) == "blocks and tokens"
    found = compare(model, tiny_tokenizer, 1, settings, 1e-4, n=2)
    start = find_values(model, tiny_tokenizer, REQUESTS[:2], 1, CONTEXTS, replace(settings, steps=1))
    assert torch.equal(start.vectors, start.initial)
    assert (found.loss < start.loss).all()


@pytest.mark.parametrize("reuse", [True, False])
def test_side_by_side_is_one_by_one(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, reuse: bool
) -> None:
    taught_llama.double()  # in float32 rounding depends on the batch, and Adam on the signs of small gradients
    settings = replace(TAUGHT, reuse_prefix=reuse)
    together = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, settings)
    assert len(set(together.steps.tolist())) > 1  # some left the batch before others
    for size in (1, 2):
        apart = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(settings, batch_size=size))
        moved = (apart.vectors - apart.initial).norm(dim=0)
        assert ((apart.vectors - together.vectors).norm(dim=0) < 1e-4 * moved).all()
        assert apart.steps.tolist() == together.steps.tolist()
    turned = find_values(taught_llama, tiny_tokenizer, KNOWN[::-1], 0, CONTEXTS, settings)
    assert ((turned.vectors.flip(1) - together.vectors).norm(dim=0) < 1e-4 * moved).all()


def test_the_probability_is_the_models_with_the_vector_in_place(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, ["{}"], replace(TAUGHT, stop_loss=0.1))
    for number, one in enumerate(KNOWN):
        place = oracle.last_token(tiny_tokenizer, one.prompt.split(str(one.subject))[0], one.subject)

        def put(module: Any, args: Any, output: Any, place: int = place, number: int = number) -> None:
            output[:, place] = found.vectors[:, number]

        hook = taught_llama.model.layers[0].register_forward_hook(put)
        (score,) = score_targets(taught_llama, tiny_tokenizer, [(one.prompt, one.target_new)])
        hook.remove()
        assert float(found.probability[number].log()) == pytest.approx(score.log_prob, rel=1e-4, abs=1e-4)
    assert found.reached.tolist() == (found.probability >= 0.5).tolist()
    assert found.reached.any()


def test_the_texts_are_those_that_evaluation_asks(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Also with a space at the prompt's end, braces in it, and a subject that the context has too."""
    one = EditRequest(prompt="def {x} of Rome is ", target_new="New York City", subject="Rome")
    (rows,) = rewriting_rows(tiny_llama, tiny_tokenizer, [one], CONTEXTS, "subject_last")
    for row, context in zip(rows, CONTEXTS, strict=False):
        prompt_ids, target_ids = join(tiny_tokenizer, context.replace("{}", one.prompt), one.target_new)
        assert list(row.ids) == prompt_ids + target_ids[:-1]
        assert list(row.targets) == target_ids
        assert tiny_tokenizer.decode(row.ids[: row.place + 1]).endswith("def {x} of Rome")
    assert rows[-1].targets == ()
    assert tiny_tokenizer.decode(rows[-1].ids, skip_special_tokens=True) == "Rome"


@pytest.mark.parametrize("fact_token", ["subject_first", "subject_first_after_last", "last"])
def test_the_fact_can_be_looked_up_elsewhere(tiny_tokenizer: PreTrainedTokenizerFast, fact_token: Any) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(CLAMPED, fact_token=fact_token)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, fact_token)
    usual = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    assert [row.place for row in rows[1]] != [row.place for row in usual[1]]
    assert all(row.place < len(row.ids) - len(row.targets) + 1 for found in rows for row in found)
    fast = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, settings)
    whole = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, replace(settings, reuse_prefix=False))
    assert torch.allclose(fast.vectors, whole.vectors, rtol=1e-9)
    start = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, replace(settings, steps=1))
    assert (fast.loss < start.loss).any()


def test_a_relative_rate_follows_the_scale_of_the_hidden_states(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    h = find_values(model, tiny_tokenizer, REQUESTS, 1, CONTEXTS, ValueSettings(steps=1)).initial
    for number in range(len(REQUESTS)):
        rate = 0.2 * float(h[:, number].norm()) / h.shape[0] ** 0.5
        relative, absolute = (
            find_values(model, tiny_tokenizer, REQUESTS[number : number + 1], 1, CONTEXTS, settings).vectors
            for settings in (
                ValueSettings(steps=5, lr=0.2, lr_unit="relative", clamp=9.0),
                ValueSettings(steps=5, lr=rate, clamp=9.0),
            )
        )
        assert torch.allclose(relative, absolute, rtol=1e-9)


def test_a_subject_at_the_very_start_without_bos(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing is before it in the bare prompt, and something is in the contexts; with one context, in none."""
    tiny_tokenizer.backend_tokenizer.post_processor = None
    model = family("gpt2", len(tiny_tokenizer)).double()
    one = [EditRequest(prompt="a was born in", target_new="Oslo", subject="a")]
    for contexts in (CONTEXTS, ("{}",)):
        fast = find_values(model, tiny_tokenizer, one, 1, contexts, CLAMPED)
        whole = find_values(model, tiny_tokenizer, one, 1, contexts, replace(CLAMPED, reuse_prefix=False))
        assert torch.allclose(fast.vectors, whole.vectors, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_optimises_in_float32(tiny_tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> None:
    model = family("llama3", len(tiny_tokenizer))
    settings = ValueSettings(steps=8, lr=0.3, clamp=9.0)
    wanted = find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    found = find_values(model.to(dtype), tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    assert found.vectors.dtype == torch.float32
    assert torch.allclose(found.loss, wanted.loss, rtol=0.1)
    assert (found.loss < find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(steps=1)).loss).all()


def test_blocks_and_tokens_below_are_run_once_and_requests_leave_as_they_finish(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes: dict[int, list[torch.Size]] = {0: [], 1: []}
    for index, block in enumerate(taught_llama.model.layers):
        block.mlp.register_forward_pre_hook(lambda module, args, index=index: sizes[index].append(args[0].shape[:2]))
    found = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, TAUGHT)
    assert len(sizes[0]) < 8 < len(sizes[1])
    rows = [shape[0] for shape in sizes[1]]
    assert rows[-1] < max(rows)
    longest = max(len(tiny_tokenizer(CONTEXTS[1].format(one.prompt)).input_ids) for one in KNOWN)
    assert sizes[1][-1][1] < longest
    sizes[0].clear()
    find_values(taught_llama, tiny_tokenizer, KNOWN, 0, CONTEXTS, replace(TAUGHT, reuse_prefix=False))
    assert len(sizes[0]) == int(found.steps.max()) + 2


def test_a_model_that_cannot_reuse_runs_whole(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """What flows past the blocks: here the last one looks at what the first was given."""
    model: Any = family("llama2", len(tiny_tokenizer)).double()
    kept: dict[str, Any] = {}
    first, last = model.model.layers[0], model.model.layers[2]
    first.mlp.register_forward_pre_hook(lambda module, args: kept.update(seen=args[0]))
    last.mlp.register_forward_pre_hook(lambda module, args: (args[0] + kept["seen"][: len(args[0]), -1:],))
    parts = find_architecture(model)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        assert exact_reuse(parts, 0, rows, CLAMPED) == "nothing"
    whole = find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, replace(CLAMPED, reuse_prefix=False))
    assert torch.equal(find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors, whole.vectors)


def test_a_target_out_of_reach_is_reported(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="corsa_plugins"):
        found = find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(steps=2, lr=1e-4))
    assert not found.reached.any()
    assert (found.probability < 0.5).all()
    for one in REQUESTS:
        assert one.name(0) in caplog.text


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    modules = {
        name: (module.training, "forward" in vars(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    asks = {name: (parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()}
    return modules | asks


@pytest.mark.parametrize("reuse", [True, False])
def test_the_model_is_left_as_it_was_whatever_is_raised(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    reuse: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama.train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = snapshot(model)
    settings = replace(CLAMPED, reuse_prefix=reuse)
    find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    assert snapshot(model) == before
    calls = 0

    def interrupt(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    hook.remove()
    assert snapshot(model) == before
    assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_inside_no_grad_or_inference_mode_it_works_too(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    wanted = find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors, wanted)


def test_nan_names_the_request(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the tokens of one request's subject are damaged."""
    with torch.no_grad():
        token = tiny_tokenizer(" Italy", add_special_tokens=False).input_ids[-1]
        tiny_llama.model.embed_tokens.weight[token] = torch.nan
    with pytest.raises(NonFiniteValueError, match=r"'italy'.*loss of its value vector is nan"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED)
    found = find_values(tiny_llama, tiny_tokenizer, REQUESTS[:2], 0, CONTEXTS, CLAMPED)
    assert found.vectors.isfinite().all()


def test_a_gradient_that_overflows_names_the_request(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama.model.layers[1].mlp.register_full_backward_hook(
        lambda module, given, got: tuple(None if one is None else one * torch.inf for one in given)
    )
    with pytest.raises(NonFiniteValueError, match=r"'france'.*gradient of its value vector is nan"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS[:1], 0, CONTEXTS, CLAMPED)


def test_bad_requests_are_refused_before_anything_runs(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def never(module: Any, args: Any) -> None:
        raise AssertionError

    tiny_llama.model.layers[0].register_forward_pre_hook(never)
    bad: Sequence[EditRequest] = [
        REQUESTS[0],
        EditRequest(prompt="The capital of Spain is", target_new="Rome", case_id="spain"),
        EditRequest.model_construct(prompt="Spain is", target_new=" ", subject="Spain", case_id="empty"),
    ]
    with pytest.raises(RequestError, match=r"(?s)2 edit requests.*'spain'.*no subject.*'empty'.*target"):
        find_values(tiny_llama, tiny_tokenizer, bad, 0, CONTEXTS)
    with pytest.raises(RequestError, match="give at least one"):
        find_values(tiny_llama, tiny_tokenizer, [], 0, CONTEXTS)
    with pytest.raises(SettingError, match="layer is 2"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 2, CONTEXTS)
    with pytest.raises(SettingError, match="layer is 7"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(loss_layer=7))
    with pytest.raises(SettingError, match="first one"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, ["A. {}"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr_unit", "times"),
        ("loss_layer", -1),
        ("weight_decay", -0.1),
        ("clamp", 0),
        ("kl_factor", float("inf")),
        ("stop_loss", -1),
        ("batch_size", True),
        ("fact_token", "middle"),
        ("reuse_prefix", 1),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name} is "):
        ValueSettings(**{name: value})


def test_without_the_kl_term_its_prompt_is_not_run(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    settings = replace(EARLY, kl_factor=0.0)
    compare(model, tiny_tokenizer, 0, settings, 1e-9)
    rows = rewriting_rows(model, tiny_tokenizer, REQUESTS, CONTEXTS, "subject_last")
    with frozen(model):
        loss = BatchLoss(find_architecture(model), 0, rows, settings)
    assert len(loss.texts.rows) == len(REQUESTS) * len(CONTEXTS)


def test_the_loss_scale_of_float16_gives_way_when_it_overflows() -> None:
    delta = torch.zeros(1, 2, requires_grad=True)
    scale = values_module._Scale(2.0**12)
    totals = ((delta.half() + 1) * torch.tensor([30.0, 1.0]).half()).float().sum(-1)
    assert torch.equal(scale.gradient(totals, delta), torch.tensor([[30.0, 1.0]]))
    assert scale.factor == 2.0**8
