"""Routed experts as one linear map: keys as a float64 oracle writes them out, and outputs that they make with W."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from corsa_plugins.model.architecture import ArchitectureError, RoutedExperts, find_architecture
from corsa_plugins.model.experts import find_mixture
from corsa_plugins.model.parts import NamedModule
from corsa_plugins.model.routed import routed_experts
from tests.model.test_architecture import build
from tests.oracles import experts as oracle
from tests.support.mixtures import COUNT, HIDDEN, MIXTURES, TAKEN

ROUTED = [name for name, (_, _, shared, _, _) in MIXTURES.items() if shared is None]


def routed(name: str, **more: Any) -> tuple[Any, RoutedExperts]:
    """A model in float64, whose biases are not zero, and the routed experts of its block 1."""
    model = build(MIXTURES[name][0](initializer_range=0.3, **more)).double().eval()
    model.set_experts_implementation("eager")  # others multiply no float64
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    edited = find_architecture(model).edited(1)
    assert isinstance(edited, RoutedExperts)
    return model, edited


def called(model: Any, module: nn.Module) -> tuple[Any, Any]:
    """What goes into a module in a forward pass, and what comes out."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args, output)))
    with torch.no_grad():
        model(input_ids=torch.arange(3, 13)[None], use_cache=False)
    handle.remove()
    return seen[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_keys_and_weights_make_what_the_experts_put_out(name: str, implementation: str) -> None:
    model, edited = routed(name)
    if implementation == "grouped_mm":
        model.float().set_experts_implementation(implementation)
    args, output = called(model, edited.module)
    edited.check(args, {})
    keys = edited.keys(args, {})
    put_out = keys.dense() @ edited.weight.T
    if edited.module.has_bias:  # type: ignore[truthy-function]
        _, index, weights = args
        put_out = put_out + (weights[..., None] * edited.module.down_proj_bias[index]).sum(1)  # type: ignore[index]
    torch.testing.assert_close(put_out, output.reshape(-1, HIDDEN))
    assert edited.d_in == COUNT * edited.module.down_proj.shape[1 if edited.transposed else 2]  # type: ignore[index,union-attr]
    assert all(int((row.unflatten(0, (COUNT, -1)).abs().amax(1) > 0).sum()) == TAKEN for row in keys.dense())
    some = torch.tensor([7, 2])
    torch.testing.assert_close(edited.keys(args, {}, some).dense(), keys.dense()[some])
    torch.testing.assert_close(keys.chosen(some).dense(), keys.dense()[some])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_keys_are_those_of_the_oracle(name: str) -> None:
    more = {"norm_topk_prob": False} if name == "qwen3_moe" else {}
    model, edited = routed(name, **more)
    mixture = find_architecture(model).mixture(1)
    assert mixture is not None
    (inputs, *_), _ = called(model, mixture.module)
    args, output = called(model, edited.module)
    module: Any = edited.module
    router: Any = mixture.routers[0].module
    up, down = (each.detach().numpy() for each in (module.gate_up_proj, edited.fused.weights))
    biases: list[Any] = [None, None]
    activation = oracle.gated
    logits = inputs.reshape(-1, HIDDEN).numpy() @ router.weight.detach().numpy().T
    if name == "gpt_oss":
        up = up.transpose(0, 2, 1)
        biases = [module.gate_up_proj_bias.detach().numpy(), module.down_proj_bias.detach().numpy()]
        activation = lambda inner: oracle.gated_and_clamped(inner, module.alpha, module.limit)  # noqa: E731
        logits = logits + router.bias.detach().numpy()
    keys = edited.keys(args, {}).dense().numpy()
    for x, z, key, put_out in zip(
        inputs.reshape(-1, HIDDEN).numpy(), logits, keys, output.reshape(-1, HIDDEN).numpy(), strict=True
    ):
        g = oracle.gates(z, TAKEN, name)
        np.testing.assert_allclose(key, oracle.kappa(x, g, up, activation, biases[0]), atol=1e-6)  # gates are float32
        np.testing.assert_allclose(put_out, oracle.output(x, g, up, down, activation, *biases), atol=1e-6)
    np.testing.assert_array_equal(edited.weight.detach().numpy(), oracle.side_by_side(down))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])  # either way of keeping them
def test_what_is_written_is_read(name: str) -> None:
    _, edited = routed(name)
    before = edited.weight.detach().clone()
    wanted = torch.randn(edited.d_out, edited.d_in, dtype=torch.float64)
    edited.write(wanted[2:5], slice(2, 5))
    assert torch.equal(edited.weight[2:5], wanted[2:5])
    assert torch.equal(edited.weight[5:], before[5:])
    edited.write(wanted)
    width = edited.fused.d_in
    assert all(torch.equal(edited.fused.weights[e], wanted[:, e * width : (e + 1) * width]) for e in range(COUNT))


def test_named_by_hand_they_come_before_the_shared_expert() -> None:
    model = build(MIXTURES["deepseek_v3"][0]())
    assert find_architecture(model).edited(1).name.endswith("shared_experts.down_proj")
    parts = find_architecture(model, down="model.layers.{}.mlp.experts")
    edited = parts.edited(1)
    assert edited.experts == COUNT
    args, _ = called(model, edited.module)
    assert isinstance(edited, RoutedExperts)
    edited.check(args, {})
    with pytest.raises(ArchitectureError, match="not a linear map"):
        find_architecture(model, down="model.layers.{}.mlp.gate").edited(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_enough(dtype: torch.dtype) -> None:
    for name in ("qwen3_moe", "gpt_oss"):
        model, edited = routed(name)
        args, _ = called(model.to(dtype), edited.module)
        edited.check(args, {})
        assert edited.keys(args, {}).parts[0][2].dtype == torch.float32


def test_experts_that_do_another_thing_are_refused() -> None:
    model, edited = routed("mixtral")
    args, _ = called(model, edited.module)
    own = edited.module.forward
    edited.module.forward = lambda *args: 1.01 * own(*args)  # type: ignore[method-assign]
    with pytest.raises(ArchitectureError, match=r"model\.layers\.1\.mlp\.experts .* differ by 9\.9e-03"):
        edited.check(args, {})
    with pytest.raises(ArchitectureError, match="is called with"):
        edited.keys((args[0], args[2], args[2]), {})


class Loose(nn.Module):
    """Experts without transformers' interface."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(COUNT, 12, HIDDEN))
        self.down_proj = nn.Parameter(torch.zeros(COUNT, HIDDEN, 6))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def test_experts_of_another_interface_or_in_packed_numbers_are_refused() -> None:
    block = nn.Module()
    block.mlp = Loose()
    mixture = find_mixture(NamedModule("block", block), HIDDEN)
    assert mixture is not None
    assert mixture.fused is not None
    with pytest.raises(ArchitectureError, match="transformers' interface of experts"):
        routed_experts(mixture.fused)
    model = build(hf.MixtralConfig(**{**MIXTURES["mixtral"][0]().to_dict()}))
    experts: Any = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ArchitectureError, match="float8_e4m3fn"):
        find_architecture(model).edited(1)
    experts.has_post_expert_norm = True
    with pytest.raises(ArchitectureError, match="a norm stands behind"):
        find_architecture(model).edited(1)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_one_expert_is_read_and_written_where_all_of_them_are(name: str) -> None:
    model, edited = routed(name)
    before, parameter = edited.weight.clone(), edited.parameter.detach().clone()
    apart = list(edited.apart())
    assert len(apart) == COUNT
    for number, (one, columns) in enumerate(apart):
        assert (one.experts, one.d_out, one.d_in) == (1, *one.weight.shape)
        assert torch.equal(one.weight, before[:, columns])
        one.write(torch.full((2, one.d_in), float(number), dtype=torch.float64), slice(3, 5))
    wanted = before.clone()
    wanted[3:5] = torch.arange(COUNT).repeat_interleave(edited.fused.d_in).double()
    assert torch.equal(edited.weight, wanted)
    assert edited.parameter.data_ptr() == model.get_parameter(edited.fused.down).data_ptr()
    edited.write(before)
    assert torch.equal(edited.parameter, parameter)
