"""A trainer that finds its learning rate by trying, and trains as if it had been given it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from corsa_plugins.errors import SettingError
from tests.trl_ext.conftest import MakeTrainer, flat, trained_adapter


def test_the_training_is_bit_for_bit_the_one_with_the_rate_that_was_found(
    make_trainer: MakeTrainer, tiny_llama: LlamaForCausalLM
) -> None:
    """Weights, the optimiser's state and the generators are as if nothing had been tried; dropout tells the last."""
    model = trained_adapter(tiny_llama, lora_dropout=0.2)
    settings = {"max_steps": 3, "train_sampling_strategy": "random"}
    found = make_trainer(model=copy.deepcopy(model), find_learning_rate=True, **settings)
    found.train()
    assert found.rates is not None
    assert found.args.learning_rate == found.rates.chosen != 1e-2
    assert len(found.rates.after) > 1
    given = make_trainer(model=copy.deepcopy(model), **(settings | {"learning_rate": found.rates.chosen}))
    given.train()
    assert torch.equal(flat(found._parameters), flat(given._parameters))
    states = [list(trainer.optimizer.state_dict()["state"].values()) for trainer in (found, given)]
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(*states, strict=True))


def test_a_streamed_data_set_is_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(find_learning_rate=True)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(SettingError, match="find_learning_rate needs a data set that can be read"):
        trainer.train()
