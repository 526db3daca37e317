"""An adapter in a state is a batch like any other; one of another base is refused, and nothing is changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.adapters import AdapterError, LoraAdapter, adopt_adapter, adopting_editor, export_state, read_adapter
from corsa_plugins.adapters.adoption import adapter_sites
from corsa_plugins.alphaedit import AlphaEditor, EditError, EditState, StateError
from corsa_plugins.alphaedit.edited import last_settings
from corsa_plugins.alphaedit.weights import LayerUpdate
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import ArchitectureError, find_architecture
from tests.adapters.test_folder import trained
from tests.adapters.test_low_rank import update
from tests.conftest import llama
from tests.fixtures.adapters import Edited
from tests.fixtures.alphaedit import QUICK, REQUESTS, Bench


@pytest.mark.parametrize("order", [("adapter", "1"), ("1", "adapter")])
def test_it_comes_out_in_any_order_bit_for_bit(order: tuple[str, str], llama_bench: Bench, tmp_path: Path) -> None:
    llama_bench.model.config._name_or_path = "a/llama"
    other = llama_bench.copy()
    trained(other.model, tmp_path / "adapter", target_modules=["down_proj"], layers_to_transform=[0, 2])
    before = llama_bench.weights()
    adapter = read_adapter(tmp_path / "adapter")
    editor = llama_bench.editor(QUICK)
    batch = adopt_adapter(editor, adapter, name="adapter", any_base=True)
    assert sorted(batch.layers) == [0, 2]
    with_it = llama_bench.weights()
    editor.edit(REQUESTS[:1], name="1", answers=False)
    assert last_settings(editor.state) == QUICK
    state = EditState.load(editor.state.save(tmp_path / "state"))
    again = AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, QUICK, state=state)
    again.revert(order[0])
    if order[0] == "1":
        assert llama_bench.holds(with_it)
    again.revert(order[1])
    assert llama_bench.holds(before)


def test_it_says_what_the_peft_model_says(llama_bench: Bench, tmp_path: Path) -> None:
    peft_model = trained(llama_bench.copy().model, tmp_path / "adapter", target_modules=["down_proj"]).eval()
    adapter = read_adapter(tmp_path / "adapter")
    editor = adopting_editor(llama_bench.model, llama_bench.tokenizer, adapter)
    adopt_adapter(editor, adapter, any_base=True)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted, said = peft_model(ids).logits, llama_bench.model(ids).logits
    assert float((wanted - said).abs().max() / wanted.abs().max()) < 1e-5


def test_what_was_exported_is_the_same_batch_bit_for_bit(edited: Edited, tmp_path: Path) -> None:
    export_state(edited.state, tmp_path / "out", batches=["tuesday"])
    adapter = read_adapter(tmp_path / "out")
    first = edited.state.first(1)
    editor = adopting_editor(edited.base.model, edited.base.tokenizer, adapter, first)
    adopt_adapter(editor, adapter, name="again")
    assert all(
        torch.equal(one, other)
        for one, other in zip(edited.base.model.parameters(), edited.model.parameters(), strict=True)
    )
    with pytest.raises(StateError, match="there is a batch 'again' already"):
        adopt_adapter(editor, adapter, name="again")


def test_one_of_another_base_is_refused(edited: Edited, llama_bench: Bench, tmp_path: Path) -> None:
    export_state(edited.state, tmp_path / "own")
    before = llama_bench.weights()
    own, foreign = read_adapter(tmp_path / "own"), llama_bench.editor(QUICK)
    with pytest.raises(AdapterError, match="it is of another base"):
        adopting_editor(llama_bench.model, llama_bench.tokenizer, own)
    trained(llama_bench.copy().model, tmp_path / "peft", target_modules=["down_proj"])
    peft = read_adapter(tmp_path / "peft")
    with pytest.raises(AdapterError, match=r"says that its base is .*, and this model is .*--any-base"):
        adopt_adapter(foreign, peft)
    assert not foreign.state.batches
    assert llama_bench.holds(before)
    adopt_adapter(foreign, replace(peft, base="a/name"), called="a/name")
    assert [batch.name for batch in foreign.state.batches] == ["1"]


def test_of_two_models_of_one_shape_the_weights_tell(edited: Edited, tmp_path: Path) -> None:
    export_state(edited.state, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out")
    model = edited.base.model
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    editor = adopting_editor(model, edited.base.tokenizer, adapter)
    with pytest.raises(AdapterError, match=r"of another base, a/testbed.*q_proj"):
        adopt_adapter(editor, adapter, any_base=True)


def test_of_other_modules_too_it_comes_out_in_any_order(llama_bench: Bench, tmp_path: Path) -> None:
    """As trainers make them: every linear map but the head."""
    llama_bench.model.config._name_or_path = "a/llama"
    before = llama_bench.weights()
    peft_model = trained(llama_bench.copy().model, tmp_path / "adapter", target_modules="all-linear").eval()
    adapter, tokenizer = read_adapter(tmp_path / "adapter"), llama_bench.tokenizer
    editor = llama_bench.editor(QUICK)
    editor.edit(REQUESTS[:1], name="1", answers=False)
    only_edited = llama_bench.weights()
    batch = adopt_adapter(editor, adapter, name="adapter", any_base=True)
    assert sorted(map(str, batch.layers))[:4] == ["0", "1", "2", "model.layers.0.mlp.gate_proj"]
    assert len(batch.layers) == 21
    loaded = EditState.load(editor.state.save(tmp_path / "state"))
    assert loaded.batch("adapter").layers.keys() == batch.layers.keys()
    again = AlphaEditor(llama_bench.model, tokenizer, None, QUICK, state=loaded)
    again.revert("adapter")
    assert llama_bench.holds(only_edited)
    adopt_adapter(again, adapter, name="adapter", any_base=True)
    again.revert("1")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted, said = peft_model(ids).logits, llama_bench.model(ids).logits
    assert float((wanted - said).abs().max() / wanted.abs().max()) < 1e-4  # 21 roundings
    export_state(again.state, tmp_path / "again")
    assert {name: update.rank for name, update in read_adapter(tmp_path / "again").updates.items()} == {
        name: update.rank for name, update in adapter.updates.items()
    }
    again.revert("adapter")
    assert llama_bench.holds(before)


def test_what_is_shared_or_no_linear_map_is_refused(llama_bench: Bench) -> None:
    model = llama_bench.model
    head = LoraAdapter("a/llama", {"lm_head": update(*model.lm_head.weight.shape, 2)})
    with pytest.raises(ArchitectureError, match=r"model\.norm is no linear map of this model"):
        adapter_sites(replace(head, updates={"model.norm": update(32, 32, 2)}), find_architecture(model))
    assert list(adapter_sites(head, find_architecture(model))) == ["lm_head"]
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(SettingError, match="are one weight"):
        adopting_editor(model, llama_bench.tokenizer, head)


def test_other_shapes_are_refused(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trained(tiny_llama, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out")
    config = tiny_llama.config
    config.intermediate_size = 48
    torch.manual_seed(0)
    narrow = LlamaForCausalLM(config)
    with pytest.raises(AdapterError, match="32 x 64, and this model has 32 x 48 there: it is of another base"):
        adopting_editor(narrow, tiny_tokenizer, adapter)
    single = llama(len(tiny_tokenizer), n_blocks=1)
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.down_proj, which this model has not"):
        adopting_editor(single, tiny_tokenizer, adapter)


def test_a_change_that_overflows_leaves_everything_as_it_was(llama_bench: Bench) -> None:
    llama_bench.model.half()
    before = llama_bench.weights()
    editor = AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, QUICK)
    huge = LayerUpdate(torch.zeros(64, 0), torch.full((32, 1), 1e4), torch.full((64, 1), 1e4))
    with pytest.raises(EditError, match=r"layer 1: .*NaN or infinity; nothing was changed"):
        editor.adopt({1: huge})
    assert llama_bench.holds(before)
    assert not editor.state.batches
