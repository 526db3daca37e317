"""The combination of adapters on a model, and its distance from the weighted sum."""

from __future__ import annotations

import copy

import pytest
import torch

from corsa_plugins.bench.merge_adapters import combine_adapters
from corsa_plugins.errors import CorsaError

peft = pytest.importorskip("peft")


def test_a_damaged_adapter_does_not_pass_the_check(two_adapters):
    folder, base = two_adapters.folder, two_adapters.base
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "a", adapter_name="x")
    model.load_adapter(folder / "b", adapter_name="y")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B.x" in n).fill_(torch.nan)
    with pytest.raises(CorsaError, match="nan away from the weighted sum"):
        combine_adapters(model, ["x", "y"], [0.5, 0.5])
