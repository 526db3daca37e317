"""What a model keeps of its tokens has one name or another, by the version of transformers."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from corsa_plugins.model.caches import cache_argument, cache_of
from corsa_plugins.model.reading import Reading
from tests.conftest import llama


class Newer(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


class Older(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Neither(nn.Module):
    def forward(self, input_ids: Any, **rest: Any) -> None: ...


@pytest.mark.parametrize(("kind", "name"), [(Newer, "cache"), (Older, "past_key_values"), (Neither, "past_key_values")])
def test_a_models_own_name_is_used(kind: type[nn.Module], name: str) -> None:
    assert cache_argument(kind()) == name


def test_what_was_kept_is_found_under_either_name() -> None:
    kept = object()
    assert cache_of(SimpleNamespace(cache=kept)) is cache_of(SimpleNamespace(past_key_values=kept)) is kept
    assert cache_of(SimpleNamespace(cache=None, past_key_values=None)) is None


def test_reading_on_is_by_the_installed_name_and_without_a_warning() -> None:
    model = llama(16, seed=0)
    assert cache_argument(model) in inspect.signature(type(model).forward).parameters
    ids = torch.tensor([[3, 4, 5, 6]])
    reading = Reading(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        reading.read(ids[:, :2], torch.ones(1, 2, dtype=torch.long), 1)
        behind = reading.read(ids[:, 2:], torch.ones(1, 2, dtype=torch.long), 1)
        whole = model(input_ids=ids).logits[:, -1:]
    torch.testing.assert_close(behind, whole)
