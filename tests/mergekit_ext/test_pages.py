"""Pages of mapped model files."""

from __future__ import annotations

import resource
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergekit_ext.pages import map_pages


@pytest.fixture
def mapped(tmp_path):
    """A tensor in a mapped file, none of whose pages is mapped yet."""
    save_file({"w": torch.arange(2**24, dtype=torch.int32).view(torch.float32)}, tmp_path / "w.safetensors")

    def open_file():
        return safe_open(tmp_path / "w.safetensors", "pt").get_tensor("w")

    return open_file


def faults_of_touching(tensor):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor.view(torch.int32)[::1024].sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux maps pages on advice")
def test_pages_are_mapped_at_once(mapped):
    tensor = mapped()
    map_pages([tensor])
    if not (faults := faults_of_touching(mapped())) > 50:
        pytest.skip(f"this system maps a whole file at the first touch ({faults} page faults)")
    assert faults_of_touching(tensor) < faults / 4


def test_values_are_what_they_were(mapped):
    tensor = mapped()
    map_pages([tensor])
    assert torch.equal(tensor.view(torch.int32), torch.arange(2**24, dtype=torch.int32))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(3), torch.ones(0), torch.tensor(1.0), torch.ones(3000, 3000).t(), torch.ones(5, device="meta")],
    ids=["small", "empty", "scalar", "not contiguous", "no memory"],
)
def test_what_lies_in_no_file_is_left_alone(tensor):
    copy = tensor.clone()
    map_pages([tensor])
    assert tensor.device.type == "meta" or torch.equal(tensor, copy)
