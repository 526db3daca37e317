"""Prompts are trained in the form that they are asked in, unless the method's settings say otherwise."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import Method, make_method, run_protocol, single_update
from corsa_plugins.rsft import RSFTSettings
from tests.conftest import CHAT_TEMPLATE
from tests.support.small_plans import BORN, FRANCE

PLAN = single_update([FRANCE, BORN])


class Plain:
    """A method without a setting for the form of its prompts."""

    def __init__(self, method: Method) -> None:
        self.name, self.describe, self.start = method.name, method.describe, method.start


def trained(
    said: bool | None, asked: bool, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, Tensor]:
    """The weights that R-SFT leaves whose settings say ``said``, where prompts are ``asked`` through the template."""
    tokenizer.chat_template = CHAT_TEMPLATE
    settings = RSFTSettings(layer=1, epochs=1, steps=2, learning_rate=3e-3, chat_template=said)
    method = make_method("rsft", settings=settings)
    run_protocol(method, PLAN, model, tokenizer, folder, chat_template=asked, max_new_tokens=4, progress=False)
    run = json.loads((folder / "run.json").read_text())
    assert run["chat_template"] == asked
    assert run["method"]["settings"]["chat_template"] == (asked if said is None else said)
    return load_file(folder / "updates" / "001-update" / "weights.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(one[name].equal(tensor) for name, tensor in other.items())


def test_what_is_asked_through_the_template_is_trained_through_it(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain, chat = (trained(said, said, taught_llama, tiny_tokenizer, tmp_path / f"{said}") for said in (False, True))
    assert not same(plain, chat)
    for asked, expected in ((False, plain), (True, chat)):
        assert same(trained(None, asked, taught_llama, tiny_tokenizer, tmp_path / f"as asked, {asked}"), expected)


@pytest.mark.parametrize("name", ["alphaedit", "alphaedit+"])
def test_alphaedit_reads_prompts_in_the_form_they_are_asked_in(
    name: str,
    make: Callable[[str], Method],
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    reached = {}
    for asked in (False, True):
        folder = tmp_path / f"{asked}"
        run_protocol(
            make(name), PLAN, taught_llama, tiny_tokenizer, folder, chat_template=asked, max_new_tokens=4,
            progress=False,
        )  # fmt: skip
        run = json.loads((folder / "run.json").read_text())
        assert run["method"]["settings"]["values"]["chat_template"] is asked
        report = json.loads((folder / "updates" / "001-update" / "report.json").read_text())
        reached[asked] = [row["value_probability"] for row in report["requests"]]
    assert reached[False] != reached[True]


def test_settings_that_say_otherwise_are_kept(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain = trained(False, False, taught_llama, tiny_tokenizer, tmp_path / "plain")
    assert same(trained(False, True, taught_llama, tiny_tokenizer, tmp_path / "otherwise"), plain)


def test_a_method_that_has_no_say_in_it_is_named(
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    method = Plain(make_method("rsft", settings=RSFTSettings(layer=1, epochs=1, steps=1)))
    with caplog.at_level(logging.WARNING, logger="corsa_plugins.methods.spec"):
        for asked in (False, True):
            caplog.clear()
            run_protocol(
                method, PLAN, taught_llama, tiny_tokenizer, chat_template=asked, max_new_tokens=4, progress=False
            )
            told = [text for text in caplog.messages if text.startswith("R-SFT is trained on plain prompts, and asked")]
            assert len(told) == asked
