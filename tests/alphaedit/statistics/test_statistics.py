"""Statistics are of one model, and the testbed's have a null space."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from corsa_plugins.alphaedit.solver.eigenbasis import MomentError
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.layer import MomentStatistics, StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.testbed import texts_of_testbed
from tests.conftest import llama


class TestCheck:
    def test_the_same_model_in_any_precision_and_edited_is_accepted(self, statistics, tiny_llama):
        with torch.no_grad():
            find_architecture(tiny_llama).ffn(0).down.weight.mul_(3)
        statistics.check(tiny_llama)
        statistics.check(tiny_llama.bfloat16())

    def test_another_model_is_refused_and_both_are_named(self, statistics, tiny_llama):
        other = llama(tiny_llama.config.vocab_size, seed=9)
        other.config._name_or_path = "someone/else"
        with pytest.raises(StatisticsError) as caught:
            statistics.check(other)
        assert f"a model (llama, {statistics.fingerprint.digest})" in str(caught.value)
        assert "someone/else (llama, " in str(caught.value)
        assert "other weights in model.embed_tokens.weight" in str(caught.value)

    def test_without_a_fingerprint_widths_decide(self, tiny_llama):
        KeyStatistics({1: MomentStatistics(torch.eye(64), 100)}).check(tiny_llama)
        with pytest.raises(StatisticsError, match="layer 1 are 32 wide, and 64 in this model"):
            KeyStatistics({1: MomentStatistics(torch.eye(32), 100)}).check(tiny_llama)
        with pytest.raises(StatisticsError, match="layer 7, and this model: layer is 7"):
            KeyStatistics({7: MomentStatistics(torch.eye(64), 100)}).check(tiny_llama)

    def test_broken_moments_are_refused(self):
        with pytest.raises(MomentError, match="second moment of layer 4 holds NaN"):
            MomentStatistics(torch.full((3, 3), float("nan")), 1, name="layer 4")
        with pytest.raises(MomentError, match="not symmetric"):
            MomentStatistics(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 1)
        with pytest.raises(StatisticsError, match="sample of keys is 3 x 5"):
            MomentStatistics(torch.eye(2), 1, torch.zeros(3, 5))


def test_the_testbed_has_texts_of_its_own_and_a_null_space():
    from corsa_plugins.testbed import load_testbed

    bed = load_testbed()
    texts = texts_of_testbed(bed, 700)
    assert texts == texts_of_testbed(bed, 700)
    assert texts != texts_of_testbed(bed, 700, seed=2)
    names = [person.name for person in bed.world.people]
    assert all(any(name in text for name in names) for text in texts[:50])
    collected = collect_statistics(bed.model, bed.tokenizer, texts, (0,), n_tokens=10_240, length=128, batch_size=32)
    space = collected.null_space(0, NullSpaceRule("share", 0.7))
    # What 70 % of the eigenvectors let through of the model's own keys is little: that is what makes editing safe.
    assert space.n_null == 717
    assert space.energy < 0.05
    collected.check(AutoModelForCausalLM.from_pretrained(bed.path, dtype=torch.bfloat16))
    assert isinstance(bed.model, LlamaForCausalLM)
