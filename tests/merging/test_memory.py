"""Memory: scratch that does not grow with the tensor, and the pages of mapped model files."""

from __future__ import annotations

import resource
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.merging.memory import map_pages


class TestScratch:
    def test_it_does_not_grow_with_the_tensor(self):
        """Only the result may: the largest allocation beside it is a chunk, a histogram or the candidates."""
        n = 2**22
        base = torch.zeros(n, dtype=torch.bfloat16)
        edited = torch.arange(n, dtype=torch.float32).bfloat16()
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            merge_deltas(base, [EditedTensor(edited)])
        held = peak = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        assert 2 * n <= peak < 2 * n + 64 * 2**20


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
