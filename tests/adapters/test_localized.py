"""Where an adapter reads: at the subjects it is for, and not where most keys lie."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.adapters import early_layers, read_directions
from corsa_plugins.adapters.localized import PRESERVED
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.lookup.wider import of_subjects
from corsa_plugins.data.requests import RequestError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import hooked
from tests.support.small_plans import BORN, FRANCE, ITALY

LAYERS = (0, 1)


@pytest.fixture
def parts(taught_llama):
    return find_architecture(taught_llama)


def test_rows_are_orthogonal_and_read_a_typical_coordinate_at_their_own_keys(
    taught_llama, tiny_tokenizer, parts
) -> None:
    requests = [FRANCE, ITALY, BORN]
    reads = read_directions(taught_llama, tiny_tokenizer, requests, LAYERS)
    keys = request_keys(taught_llama, tiny_tokenizer, requests, LAYERS, ["{}"])
    bare = request_keys(taught_llama, tiny_tokenizer, of_subjects(requests), LAYERS, ["{}"])
    assert list(reads) == [parts.ffn(layer).down.name for layer in LAYERS]
    for layer, rows in zip(LAYERS, reads.values(), strict=True):
        assert rows.shape == (3, keys[layer].shape[0])
        typical = request_outputs(taught_llama, tiny_tokenizer, requests, layer).pow(2).mean(0).sqrt() / len(LAYERS)
        torch.testing.assert_close((rows @ keys[layer]).diagonal().abs().mean(), typical.mean())
        gram = rows @ rows.T
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(3), rtol=1e-4, atol=1e-4 * float(gram[0, 0]))
        # the nearest orthonormal columns are the polar factor
        wanted = keys[layer] / keys[layer].norm(dim=0) + bare[layer] / bare[layer].norm(dim=0)
        left, _, right = torch.linalg.svd((wanted / wanted.norm(dim=0)).double(), full_matrices=False)
        torch.testing.assert_close(rows / rows.norm(dim=1)[:, None], (left @ right).T.float(), rtol=1e-3, atol=1e-4)


def test_a_subject_that_is_edited_twice_is_read_once(taught_llama, tiny_tokenizer) -> None:
    twice = read_directions(taught_llama, tiny_tokenizer, [FRANCE, FRANCE, ITALY], LAYERS)
    for rows in twice.values():
        torch.testing.assert_close(rows[0], rows[1])
        assert rows.isfinite().all()


def test_what_most_preserved_keys_share_is_not_read(taught_llama, tiny_tokenizer, parts) -> None:
    texts = [tiny_tokenizer(text)["input_ids"] for text in ("The capital of Spain is Madrid", "Rome is in Italy")]
    seen: list[torch.Tensor] = []
    with torch.no_grad(), hooked(parts.ffn(1).down.module, lambda _, args: seen.append(args[0][0]), before=True):
        for text in texts:
            taught_llama(torch.tensor([text]))
    keys = torch.cat(seen).double()
    n = round(PRESERVED * keys.shape[1])
    _, _, right = torch.linalg.svd(keys, full_matrices=False)
    name = parts.ffn(1).down.name
    plain = read_directions(taught_llama, tiny_tokenizer, [FRANCE], LAYERS)[name].double()
    spared = read_directions(taught_llama, tiny_tokenizer, [FRANCE], LAYERS, preserved=texts)[name].double()
    assert 0 < n < len(right)
    assert (spared @ right[:n].T).abs().max() < 1e-5 * spared.norm()
    assert (plain @ right[:n].T).abs().max() > 1e-2 * plain.norm()
    projected = plain - plain @ right[:n].T @ right[:n]
    assert torch.cosine_similarity(spared[0], projected[0], dim=0) > 1 - 1e-6


def test_the_model_is_left_as_it_is(taught_llama, tiny_tokenizer) -> None:
    before = {name: tensor.clone() for name, tensor in taught_llama.state_dict().items()}
    taught_llama.train()
    read_directions(taught_llama, tiny_tokenizer, [FRANCE], LAYERS, preserved=[[1, 2, 3]])
    assert taught_llama.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught_llama.state_dict().items())
    assert all(parameter.requires_grad for parameter in taught_llama.parameters())


def test_a_request_without_a_subject_is_named(taught_llama, tiny_tokenizer) -> None:
    nameless = FRANCE.model_copy(update={"subject": None})
    with pytest.raises(RequestError, match="subject"):
        read_directions(taught_llama, tiny_tokenizer, [ITALY, nameless], LAYERS)


def test_early_layers_are_the_first_of_a_good_third(taught_llama) -> None:
    assert early_layers(taught_llama) == (0,)
