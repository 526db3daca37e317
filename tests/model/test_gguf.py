"""GGUF files named as models: loaded as what they hold, saved as ordinary models, and refused by name and cause."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from corsa_plugins.errors import MissingExtraError, SettingError
from corsa_plugins.model.gguf import find_gguf, refuse_gguf
from corsa_plugins.model.identity import Fingerprint, model_key
from corsa_plugins.model.loading import LoadingError, load_model
from corsa_plugins.model.tokenization import encode_prompt
from tests.conftest import CHAT_TEMPLATE
from tests.support.gguf import write_gguf

PROMPTS = ("The capital of France is", "Where was Anna Berg born?", "def add(a, b):\n    return a")


def _logits(model, tokenizer, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([encode_prompt(tokenizer, prompt)])).logits


@pytest.fixture
def held(tmp_path: Path, taught_llama, tiny_tokenizer):
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    return write_gguf(tmp_path / "gguf" / "tiny.gguf", taught_llama, tiny_tokenizer)


class TestLoading:
    @pytest.mark.parametrize("name", ["gguf/tiny.gguf", "gguf"])
    def test_it_answers_with_the_weights_that_the_blocks_stand_for(self, tmp_path: Path, held, tiny_tokenizer, name):
        model, tokenizer = load_model(tmp_path / name, device="cpu")
        assert model.dtype == torch.float32
        assert not model.training
        for prompt in PROMPTS:
            assert encode_prompt(tokenizer, prompt) == encode_prompt(tiny_tokenizer, prompt)
            torch.testing.assert_close(_logits(model, tokenizer, prompt), _logits(held, tiny_tokenizer, prompt))
        asked = [encode_prompt(each, PROMPTS[1], True) for each in (tokenizer, tiny_tokenizer)]
        assert asked[0] == asked[1]

    def test_blocks_round_the_weights(self, tmp_path: Path, held, taught_llama, tiny_tokenizer) -> None:
        model, tokenizer = load_model(tmp_path / "gguf", device="cpu")
        difference = _logits(model, tokenizer, PROMPTS[0]) - _logits(taught_llama, tiny_tokenizer, PROMPTS[0])
        assert 1e-4 < float(difference.abs().max()) < 1

    def test_float32_files_come_back_bit_for_bit(self, tmp_path: Path, taught_llama, tiny_tokenizer) -> None:
        write_gguf(tmp_path / "full.GGUF", taught_llama, tiny_tokenizer, quantised=False)
        model, _ = load_model(tmp_path / "full.GGUF", device="cpu")
        mine = dict(taught_llama.named_parameters())
        assert all(torch.equal(mine[name], parameter) for name, parameter in model.named_parameters())

    def test_saved_it_is_an_ordinary_model(self, tmp_path: Path, held) -> None:
        model, tokenizer = load_model(tmp_path / "gguf", device="cpu")
        model.save_pretrained(tmp_path / "out")
        tokenizer.save_pretrained(tmp_path / "out")
        again, words = load_model(tmp_path / "out", device="cpu")
        assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
        assert model_key(again, words) == model_key(model, tokenizer)
        assert again.config.eos_token_id == tokenizer.eos_token_id

    def test_its_fingerprint_is_the_same_each_time_and_that_of_the_saved_model(self, tmp_path: Path, held) -> None:
        first, tokenizer = load_model(tmp_path / "gguf", device="cpu")
        second, _ = load_model(tmp_path / "gguf" / "tiny.gguf", device="cpu", dtype="bfloat16")
        assert second.dtype == torch.bfloat16
        first.save_pretrained(tmp_path / "out")
        tokenizer.save_pretrained(tmp_path / "out")
        of_first = Fingerprint.of(first)
        assert of_first.digest == Fingerprint.of(load_model(tmp_path / "gguf", device="cpu")[0]).digest
        assert of_first.matches(Fingerprint.of(second))
        assert of_first.digest == Fingerprint.of(load_model(tmp_path / "out", device="cpu")[0]).digest
        assert of_first.name == str(tmp_path / "gguf" / "tiny.gguf")

    def test_it_can_be_trained(self, tmp_path: Path, held) -> None:
        peft = pytest.importorskip("peft")
        model, tokenizer = load_model(tmp_path / "gguf", device="cpu")
        config = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])
        adapted(input_ids=ids, labels=ids).loss.backward()
        adapted.save_pretrained(tmp_path / "adapter")
        again, _ = load_model(tmp_path / "gguf", tmp_path / "adapter", device="cpu")
        assert isinstance(again, peft.PeftModel)
        assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path.endswith("tiny.gguf")


class TestNames:
    def test_several_files_are_named(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).write_bytes(b"GGUF")
        with pytest.raises(LoadingError, match=r"several GGUF files, a\.gguf, b\.gguf: name one"):
            load_model(tmp_path)
        assert find_gguf(tmp_path / "b.gguf") == tmp_path / "b.gguf"

    def test_weights_of_transformers_go_before(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        assert find_gguf(tmp_path) == tmp_path / "a.gguf"
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert find_gguf(tmp_path) is None
        assert find_gguf("some/name-GGUF") is None

    def test_a_missing_file(self) -> None:
        with pytest.raises(LoadingError, match=r"nowhere\.gguf: no such file \(looked in"):
            load_model("nowhere.gguf")

    def test_what_reads_no_gguf_says_how_to_get_on(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        with pytest.raises(SettingError, match=r"which mergekit does not read: write it out first, as in corsa atlas"):
            refuse_gguf(tmp_path / "a.gguf", "mergekit")
        refuse_gguf("a/name", "mergekit")


class TestBrokenFiles:
    def test_what_is_no_gguf(self, tmp_path: Path) -> None:
        pytest.importorskip("gguf")
        (tmp_path / "letter.gguf").write_text("Dear file,")
        with pytest.raises(LoadingError, match=r"letter\.gguf cannot be loaded: it is no GGUF file"):
            load_model(tmp_path / "letter.gguf")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
    def test_a_file_cut_short(self, tmp_path: Path, held, share: float) -> None:
        content = (tmp_path / "gguf" / "tiny.gguf").read_bytes()
        (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
        with pytest.raises(LoadingError, match=r"cut\.gguf cannot be loaded: .*is the file whole"):
            load_model(tmp_path / "cut.gguf", device="cpu")

    def test_an_unknown_architecture(self, tmp_path: Path, taught_llama, tiny_tokenizer) -> None:
        write_gguf(tmp_path / "tiny.gguf", taught_llama, tiny_tokenizer, architecture="abacus")
        with pytest.raises(LoadingError, match=r"abacus.*does not read this architecture"):
            load_model(tmp_path / "tiny.gguf", device="cpu")

    def test_gguf_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(MissingExtraError, match=r"reading a\.gguf needs gguf: .*corsa-plugins\[gguf\]"):
            load_model(tmp_path / "a.gguf")
