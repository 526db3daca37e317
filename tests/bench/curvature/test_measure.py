"""Eigenvalues found by products alone are those of the Hessian written out."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from corsa_plugins.bench.curvature import Curvature, CurvatureError, curvature
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.tokenization import join

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris"),
    EditRequest(prompt="Where was Anna Berg born?", target_new="Rome", target_old="in Oslo"),
    EditRequest(prompt="Anna Berg plays", target_new="the violin"),
]


@pytest.fixture
def gpt2(tiny_tokenizer):
    """A random GPT-2 in float64: unlike a Llama, it computes nothing in float32 there."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).double().eval()


def chosen(model):
    return [model.model.norm.weight, model.model.layers[1].input_layernorm.weight]


def explicit_hessian(model, tokenizer, of, parameters):
    """Written out, one sequence at a time, without padding."""

    def log_prob(prompt, target):
        row = join(tokenizer, prompt, target)
        logits = model(input_ids=torch.tensor([row.prompt_ids + row.target_ids])).logits[0]
        start = len(row.prompt_ids) - 1
        picked = logits[start : start + len(row.target_ids)].log_softmax(-1)
        return picked[range(len(row.target_ids)), row.target_ids].sum(), len(row.target_ids)

    if of == "sft_loss":
        parts = [log_prob(r.prompt, r.target_new) for r in REQUESTS]
        value = -sum(p for p, _ in parts) / sum(n for _, n in parts)
    else:
        pairs = [(r.prompt, r.target_new, r.target_old) for r in REQUESTS if r.target_old]
        value = sum(log_prob(p, new)[0] - log_prob(p, old)[0] for p, new, old in pairs) / len(pairs)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, create_graph=True)])
    rows = [
        torch.cat([h.flatten() for h in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for entry in gradient
    ]
    return torch.stack([torch.cat([h.flatten() for h in row]) for row in rows]), value.item()


@pytest.mark.parametrize(("of", "attention"), [("sft_loss", "eager"), ("margin", "sdpa")])
def test_they_are_those_of_the_hessian_written_out(gpt2, tiny_tokenizer, of, attention):
    model = gpt2
    model.set_attn_implementation("eager")
    parameters = [model.transformer.h[0].ln_1.weight, model.transformer.h[1].ln_2.bias, model.transformer.ln_f.weight]
    hessian, value = explicit_hessian(model, tiny_tokenizer, of, parameters)
    assert torch.allclose(hessian, hessian.T, atol=1e-10)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    model.set_attn_implementation(attention)
    found = curvature(
        model, REQUESTS, tiny_tokenizer, [of], parameters, batch_size=2, tolerance=1e-10, max_iterations=200
    )[of]
    assert found.converged
    assert found.value == pytest.approx(value)
    assert found.top == pytest.approx(float(eigenvalues[-1]), rel=1e-7)
    assert found.bottom == pytest.approx(float(eigenvalues[0]), rel=1e-3)
    assert abs(found.largest) == pytest.approx(float(eigenvalues.abs().max()), rel=1e-7)


def figures(found: Curvature) -> dict[str, float]:
    return {name: value for name, value in vars(found).items() if name != "about"}


def test_the_batch_size_changes_nothing(taught_llama, tiny_tokenizer):
    model = taught_llama.double()
    options = {"parameters": chosen(model), "max_iterations": 5, "tolerance": 1e-12}
    one = curvature(model, REQUESTS, tiny_tokenizer, batch_size=1, **options)
    all_at_once = curvature(model, REQUESTS, tiny_tokenizer, batch_size=64, **options)
    for name, found in one.items():
        assert figures(found) == pytest.approx(figures(all_at_once[name]), rel=1e-8)
        assert found.about == all_at_once[name].about


def test_over_an_adapter_by_default_and_everything_is_as_it_was(taught_llama, tiny_tokenizer):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5)
    model = peft.get_peft_model(taught_llama, config).train()
    lora = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    lora[0].requires_grad_(False)  # an adapter loaded for inference
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    values = [parameter.clone() for parameter in model.parameters()]
    found = curvature(model, REQUESTS, tiny_tokenizer, max_iterations=3)
    again = curvature(model, REQUESTS, tiny_tokenizer, parameters=lora, max_iterations=3)
    assert found == again
    assert found["margin"].iterations == 3
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    scores = score_targets(
        model, tiny_tokenizer, [(r.prompt, t) for r in REQUESTS[:2] for t in (r.target_new, r.target_old)]
    )
    margin = (scores[0].log_prob - scores[1].log_prob + scores[2].log_prob - scores[3].log_prob) / 2
    assert found["margin"].value == pytest.approx(margin, abs=1e-4)
    with model.disable_adapter(), pytest.raises(CurvatureError, match="does not depend on the parameters"):
        curvature(model, REQUESTS, tiny_tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": []}, "of is"),
        ({"of": ["loss"]}, "choose from sft_loss, margin"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"requests": []}, "no requests"),
        ({"requests": REQUESTS[2:]}, "no request has a target_old"),
        ({"parameters": []}, "no parameters"),
    ],
)
def test_settings_out_of_range_are_named(tiny_llama, tiny_tokenizer, options, message):
    with pytest.raises(SettingError, match=message):
        curvature(**{"model": tiny_llama, "requests": REQUESTS, "tokenizer": tiny_tokenizer, **options})


def test_attention_without_a_second_derivative_is_refused(tiny_llama, tiny_tokenizer):
    tiny_llama.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SettingError, match="attn_implementation='eager'"):
        curvature(tiny_llama, REQUESTS, tiny_tokenizer)


def test_a_damaged_model_is_an_error(tiny_llama, tiny_tokenizer):
    with torch.no_grad():
        tiny_llama.lm_head.weight.fill_(torch.nan)
    with pytest.raises(CurvatureError, match="not finite"):
        curvature(tiny_llama, REQUESTS, tiny_tokenizer, parameters=chosen(tiny_llama))
