"""The router that compares a question with the edit prompts of every part."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.bench.routing.nearest import NearestRouter
from corsa_plugins.errors import SettingError
from corsa_plugins.model.tokenization import encode_prompt
from tests.support.routing import CAPITALS, PARTS, QUESTIONS


def states_by_hand(model, tokenizer, prompts, layer):
    rows = [model(torch.tensor([encode_prompt(tokenizer, prompt)]), output_hidden_states=True) for prompt in prompts]
    return torch.stack([row.hidden_states[layer][0, -1].double() for row in rows])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_nearest_request_is_that_of_the_largest_cosine(tiny_llama, tiny_tokenizer, batch_size):
    peft = pytest.importorskip("peft")
    questions = list(QUESTIONS)
    with torch.no_grad():
        prompts = states_by_hand(tiny_llama, tiny_tokenizer, [r.prompt for part in PARTS for r in part], 1)
        asked = states_by_hand(tiny_llama, tiny_tokenizer, questions, 1)
    mean = prompts.mean(0)
    cosines = torch.nn.functional.cosine_similarity((asked - mean)[:, None], (prompts - mean)[None], dim=-1)
    expected = torch.stack([cosines[:, :2].amax(1), cosines[:, 2]], 1)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config)
    router = NearestRouter(model, tiny_tokenizer, PARTS, layer=1, batch_size=batch_size)
    torch.testing.assert_close(torch.tensor(router.scores(questions)).double(), expected, atol=1e-5, rtol=0)
    assert router.route(questions) == expected.argmax(1).tolist()
    assert router.scores([]) == router.route([]) == []


def test_an_edit_prompt_is_nearest_to_itself_whatever_the_order_of_the_parts(taught_llama, tiny_tokenizer):
    for parts in (PARTS, PARTS[::-1]):
        router = NearestRouter(taught_llama, tiny_tokenizer, parts)
        assert router.labels == ["1", "2"]
        for place, group in enumerate(parts):
            prompts = [request.prompt for request in group]
            assert router.route(prompts) == [place] * len(group)
            assert [row[place] for row in router.scores(prompts)] == pytest.approx([1.0] * len(group), abs=1e-5)


def test_a_nearest_router_that_cannot_work_is_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(SettingError, match="every adapter needs requests"):
        NearestRouter(tiny_llama, tiny_tokenizer, [CAPITALS, []])
    with pytest.raises(SettingError, match=r"no \{question\}"):
        NearestRouter(tiny_llama, tiny_tokenizer, PARTS, template="Say it:")
    for layer in (0, 3):
        with pytest.raises(SettingError, match="blocks 1 to 2"):
            NearestRouter(tiny_llama, tiny_tokenizer, PARTS, layer=layer)
