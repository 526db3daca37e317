"""LocFT-BF is its published training, trains nothing else, and gives the model back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.effect import read_effect
from corsa_plugins.methods.history import HISTORY, read_history
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.methods.locft.train import LocFTReport, locft, weights_of
from corsa_plugins.methods.registry import method_spec
from corsa_plugins.methods.spec import REPORT
from corsa_plugins.model.architecture import ArchitectureError
from tests.model.test_architecture import build
from tests.oracles import locft as oracle
from tests.support.mixtures import MIXTURES, listed_experts
from tests.support.training import FLOAT32_NORMS, FLOAT64, REQUESTS, changed, flat, gpt2, pairs, state

SEED = 3


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return gpt2(len(tiny_tokenizer))


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: LocFTSettings
) -> tuple[float, LocFTReport, list[float], list[bool]]:
    """Train both from the same start: relative distance of the updates, our report, the oracle's losses and steps."""
    twin = copy.deepcopy(model).double()
    theta = list(weights_of(twin, settings).values())
    start = flat(theta)
    report = locft(model, tokenizer, REQUESTS, settings, seed=SEED)
    random = torch.Generator().manual_seed(SEED)
    orders = [torch.randperm(len(REQUESTS), generator=random).tolist() for _ in range(settings.epochs)]
    end = [tokenizer.eos_token_id] if settings.append_eos else []
    data = [(prompt, [*target, *end]) for prompt, target in pairs(tokenizer)]
    losses, stepped = oracle.train(
        twin, data, theta, orders, settings.batch_size, settings.learning_rate, settings.loss_threshold
    )
    distance = (flat(weights_of(model, settings).values()) - flat(theta)).norm() / (flat(theta) - start).norm()
    return float(distance), report, losses, stepped


@pytest.mark.parametrize("trains", ["down", "block"])
def test_is_the_published_training_in_float64(
    base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, trains: Any
) -> None:
    settings = LocFTSettings(layer=1, trains=trains, epochs=40, batch_size=2, learning_rate=2e-2, loss_threshold=1.3)
    distance, report, losses, stepped = compare(base.double(), tiny_tokenizer, settings)
    assert distance < FLOAT64
    assert report.losses == pytest.approx(losses, rel=1e-9)
    assert report.steps == sum(stepped)
    assert not all(stepped), "a batch under the threshold makes no step"
    assert report.learned
    assert len(losses) < settings.epochs, "and a mean under it ends the training"


def _gated(inner: torch.Tensor) -> torch.Tensor:
    gate, up = inner.chunk(2)
    return torch.nn.functional.silu(gate) * up


def _gated_and_clamped(inner: torch.Tensor) -> torch.Tensor:
    gate, up = inner[0::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@pytest.mark.parametrize(("name", "key"), [("mixtral", _gated), ("gpt_oss", _gated_and_clamped)])
def test_of_routed_experts_it_is_the_published_training_of_each_down_map(
    name: str, key: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Experts that no token of the requests takes keep their bits; nothing else of the mixture trains."""
    config = MIXTURES[name][0](vocab_size=len(tiny_tokenizer), initializer_range=0.2, num_local_experts=24)
    model = build(config).double().eval()
    model.set_experts_implementation("eager")  # others multiply no float64
    settings = LocFTSettings(layer=1, epochs=6, batch_size=2, learning_rate=2e-2, append_eos=False)
    twin = copy.deepcopy(model)
    experts = twin.model.layers[1].mlp.experts
    turned = bool(experts.is_transposed)
    downs = [(w.T if turned else w).detach().clone().requires_grad_() for w in experts.down_proj]
    start, before = [w.detach().clone() for w in downs], state(model)
    biases = [getattr(experts, f"{part}_proj_bias", None) for part in ("gate_up", "down")]
    experts.forward = oracle.routed_by_hand(experts, downs, biases[0], key, biases[1])
    taken: set[int] = set()
    # looked at where rows are run by themselves: among ours the padding takes experts too, for nothing
    experts.register_forward_pre_hook(lambda _, args: taken.update(args[1].flatten().tolist()))
    report = locft(model, tiny_tokenizer, REQUESTS[:2], settings, seed=SEED)
    random = torch.Generator().manual_seed(SEED)
    orders = [torch.randperm(2, generator=random).tolist() for _ in range(settings.epochs)]
    losses, stepped = oracle.train(
        twin, pairs(tiny_tokenizer, REQUESTS[:2]), downs, orders, 2, settings.learning_rate, settings.loss_threshold
    )
    assert 0 < len(taken) < 24
    assert report.losses == pytest.approx(losses, rel=1e-5)
    assert report.steps == sum(stepped) == settings.epochs
    assert changed(model, before) == set(report.parameters) == {"model.layers.1.mlp.experts.down_proj"}
    for number, (weight, wanted) in enumerate(zip(model.model.layers[1].mlp.experts.down_proj, downs, strict=True)):
        ours, theirs = ((w.detach() - start[number]) for w in (weight.T if turned else weight, wanted))
        assert bool(theirs.any()) == (number in taken)
        assert (ours - theirs).norm() <= FLOAT32_NORMS * theirs.norm(), number


def test_updates_of_routed_experts_follow_each_other_and_are_given_back(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build(MIXTURES["mixtral"][0](vocab_size=len(tiny_tokenizer), initializer_range=0.2)).eval()
    settings = LocFTSettings(layer=1, epochs=2, learning_rate=1e-2)
    start, made = state(model), []
    session = method_spec("locft-bf")(settings=settings).start(model, tiny_tokenizer, seed=5)
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        session.update(REQUESTS[number : number + 1], tmp_path / str(number))
        made.append(state(model))
    assert changed(model, start) == changed(model, made[0]) == {"model.layers.1.mlp.experts.down_proj"}
    session.close()
    assert not changed(model, start)
    again = method_spec("locft-bf")(settings=settings).start(model, tiny_tokenizer, seed=5)
    for number in (1, 0):
        again.restore(tmp_path / str(number))
        assert not changed(model, made[number])
    again.close()
    assert not changed(model, start)


def test_of_experts_in_a_list_each_down_map_trains(base: PreTrainedModel) -> None:
    width = base.config.hidden_size
    base.transformer.h[1].mlp = listed_experts(width)
    found = weights_of(base, LocFTSettings(layer=1))
    assert list(found) == [f"transformer.h.1.mlp.experts.{number}.2.weight" for number in (0, 1)]
    base.transformer.h[1].mlp = nn.Sequential(nn.Linear(width, width))
    with pytest.raises(ArchitectureError, match=r"transformer\.h\.1\.mlp \(Sequential\) has 1 linear map,"):
        weights_of(base, LocFTSettings(layer=1))


def test_the_end_of_the_answer_is_trained_where_it_is_asked_for(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for end in (True, False):
        model = copy.deepcopy(tiny_llama).double()
        settings = LocFTSettings(layer=0, epochs=3, learning_rate=5e-3, append_eos=end)
        distance, report, _, _ = compare(model, tiny_tokenizer, settings)
        assert distance < FLOAT32_NORMS
        assert not report.learned


def test_one_weight_changes_and_the_layer_is_as_deep_as_published(
    tiny_llama: LlamaForCausalLM, base: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for model, name in ((base, "transformer.h.1.mlp.c_proj.weight"), (tiny_llama, "layers.0.mlp.down_proj.weight")):
        before = state(model)
        settings = LocFTSettings(epochs=1, layer=1 if model is base else 0)
        report = locft(model.train(), tiny_tokenizer, REQUESTS, settings)
        (only,) = changed(model, before)
        assert only.endswith(name)
        assert report.parameters == (only,)
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
    layers = [LocFTSettings().layer_of(n) for n in (32, 12, 3, 1)]
    assert layers == [22, 8, 2, 0]


def test_an_update_is_kept_put_back_and_taken_out(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = LocFTSettings(layer=1, epochs=60, learning_rate=2e-2, loss_threshold=0.5, append_eos=False)
    start = state(taught_llama)
    first, second = (
        method_spec("locft-bf")(settings=settings).start(taught_llama, tiny_tokenizer, seed=5) for _ in "ab"
    )
    first.update(REQUESTS[:2], tmp_path)
    made = state(taught_llama)
    assert changed(taught_llama, start)
    assert read_effect(tmp_path)["text"] == "2 of 2 facts learned"
    told = json.loads((tmp_path / REPORT).read_text())
    assert told["learned"], told["losses"]
    assert len(told["losses"]) == len(read_history(tmp_path / HISTORY)) - 1
    first.close()
    assert not changed(taught_llama, start)
    second.restore(tmp_path)
    assert not changed(taught_llama, made)
    second.close()
    assert not changed(taught_llama, start)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), None])
def test_a_training_that_breaks_off_leaves_the_weights(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, stop: BaseException | None
) -> None:
    if stop is None:
        with torch.no_grad():
            tiny_llama.lm_head.weight[0] = torch.nan
    before = state(tiny_llama)

    def interrupt(epochs: int, steps: int) -> None:
        if epochs == 2 and stop is not None:
            raise stop

    expected: Any = KeyboardInterrupt if stop else CorsaError
    with pytest.raises(expected, match=None if stop else r"france.*lower learning_rate"):
        locft(
            tiny_llama, tiny_tokenizer, REQUESTS, LocFTSettings(layer=0, learning_rate=5e-3), on_epoch=interrupt
        )  # fmt: skip
    assert not changed(tiny_llama, before)
