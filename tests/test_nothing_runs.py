"""Nothing that a file brings is run: no object out of YAML or a pickle, and no code of a model's own."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.foreign import read_projectors
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.errors import CorsaError, LoadingError
from corsa_plugins.manifest import DamagedError, check_folder, write_manifest
from corsa_plugins.model.loading import load_model
from corsa_plugins.settings import read_mapping

ROOT = Path(__file__).parents[1]
PACKAGES = ("corsa_plugins", "trl_ext", "easyedit_ext", "mergekit_ext", "lm_eval_ext")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_no_module_reads_what_could_run() -> None:
    """By name: what unpickles, evaluates or builds objects out of text."""
    for file in FILES:
        for call in calls(file):
            name, given = ast.unparse(call.func), keywords(call)
            if name == "torch.load":
                assert given.get("weights_only") == "True", file
            if name.endswith("numpy.load"):
                assert given.get("allow_pickle") == "False", file
            assert given.get("trust_remote_code") != "True", file
            assert name not in {
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "Unpickler",
                "os.system",
                "joblib.load",
            }, file
            assert not (name.startswith("yaml.") and name.endswith("load")) or name == "yaml.safe_load", file


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, str]:
    """A file that must not be there, and Python that makes it."""
    return tmp_path / "was here", f"open({str(tmp_path / 'was here')!r}, 'w')"


def test_yaml_that_would_build_an_object(tmp_path: Path, evil: tuple[Path, str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"lr: !!python/object/apply:builtins.open [{str(evil[0])!r}, 'w']\n")
    with pytest.raises(CorsaError, match=r"settings is not YAML: could not determine a constructor"):
        read_mapping(file, "settings")
    assert not evil[0].exists()


def test_the_code_that_comes_with_a_model_is_not_run(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, evil: tuple[Path, str]
) -> None:
    folder = tmp_path / "model"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "theirs.py").write_text(f"{evil[1]}\nclass Theirs: pass\nclass TheirConfig: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.Theirs"}}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder, device="cpu")  # by the class of transformers that the type names
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs"}))
    with pytest.raises(LoadingError, match=r"custom code|trust_remote_code"):
        load_model(folder, device="cpu")
    assert not evil[0].exists()


def test_pickled_projectors_are_not_run(tmp_path: Path, evil: tuple[Path, str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(evil[0]), "w"))

    for zipped in (True, False):
        torch.save([Evil()], tmp_path / "P.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(StatisticsError, match=r"P\.pt cannot be read"):
            read_projectors(tmp_path / "P.pt", [0])
    assert not evil[0].exists()


def test_a_manifest_reads_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("theirs")
    (tmp_path / "folder").mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret"):
        write_manifest(tmp_path / "folder", {name: "0" * 64})
        with pytest.raises(DamagedError, match="which is elsewhere"):
            check_folder(tmp_path / "folder")
