"""A method that another package brings, in one file and with one entry point, is there wherever methods are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit import load_edited
from corsa_plugins.bench.protocols import make_method, method_names
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.demo.run import Rounds, default_methods, demo_methods, run_demo
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.registry import method_spec, method_specs
from tests.support.small_plans import BORN, FRANCE, ITALY

FILE = '''
"""Nudge: every weight of the head a little larger."""

from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file, save_file

from corsa_plugins.methods.spec import REPORT, MethodSpec
from easyedit_ext.method import EasyEditMethod


@dataclass(frozen=True)
class NudgeSettings:
    size: float = 0.01

    @classmethod
    def presets(cls):
        return ("testbed",)

    @classmethod
    def load(cls, source):
        return cls(0.02) if source == "testbed" else cls(float(source))


@dataclass(frozen=True)
class NudgeMethod:
    name: str
    settings: NudgeSettings
    times: int

    def describe(self):
        return {"method": self.name, "times": self.times, **asdict(self.settings)}

    def start(self, model, tokenizer, *, seed):
        return NudgeSession(model, self.settings.size * self.times)


class NudgeSession:
    def __init__(self, model, step):
        self.model, self.step = model, step
        self.original = model.lm_head.weight.detach().clone()

    @torch.no_grad()
    def update(self, requests, folder):
        self.model.lm_head.weight.add_(self.step)
        save_file({"head": self.model.lm_head.weight.detach().clone()}, folder / "head.safetensors")
        (folder / REPORT).write_text('{"of my own": true}')

    @torch.no_grad()
    def restore(self, folder):
        self.model.lm_head.weight.copy_(load_file(folder / "head.safetensors")["head"])

    @torch.no_grad()
    def close(self):
        self.model.lm_head.weight.copy_(self.original)


def make(settings=None, times=1):
    return NudgeMethod("Nudge", NudgeSettings.load(settings) if settings else NudgeSettings(), times)


def apply_nudge(model, tok, requests, hparams, **kwargs):
    return model, {}


EASYEDIT = EasyEditMethod("Nudge", apply_nudge, "right")

nudge = MethodSpec(
    name="nudge",
    title="Nudge",
    summary="moves the head",
    source="doi:10.1000/nudge",
    make=make,
    settings=NudgeSettings,
    easyedit="corsa_test_nudge:EASYEDIT",
)
'''
LINE = "nudge = corsa_test_nudge:nudge"


@pytest.fixture(autouse=True)
def nudge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file and the line, installed as pip would do it."""
    site = tmp_path / "site"
    info = site / "corsa_test_nudge-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corsa-test-nudge\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[corsa_plugins.methods]\n{LINE}\n")
    (site / "corsa_test_nudge.py").write_text(FILE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "corsa_test_nudge", raising=False)
    return site


@pytest.fixture
def model(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A saved model, with two files of requests beside it."""
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_requests(tmp_path / "a.jsonl", [FRANCE, BORN])
    write_requests(tmp_path / "b.jsonl", [ITALY])
    return tmp_path / "model"


def corsa(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_the_registry_knows_it_and_its_options() -> None:
    assert "nudge" in method_names()
    assert method_spec("nudge") in method_specs()
    assert method_specs()[-1].name == "nudge", "behind those that it has not been compared with"
    assert make_method("nudge", settings="testbed", times=3).describe() == {"method": "Nudge", "times": 3, "size": 0.02}
    with pytest.raises(SettingError, match=r"method nudge: .*tiems.*its options are: settings, times"):
        make_method("nudge", tiems=3)


@pytest.mark.parametrize("command", ["edit", "protocol", "demo"])
def test_the_help_of_every_command_that_takes_methods_names_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = corsa(capsys, command, "--help")
    assert code == 0
    assert ", nudge, " in " ".join(said.split())


def test_its_module_is_not_imported_to_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    corsa(capsys, "edit", "--help")
    assert "corsa_test_nudge" not in sys.modules


def test_corsa_edit_edits_with_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("edit", "--model", model, "--requests", model.parent / "a.jsonl", "--method", "nudge", "--quiet")
    output = model.parent / "edited"
    code, said, error = corsa(capsys, *arguments, "--settings", "0.5", "--option", "times=2", "--output", output)
    assert (code, error) == (0, "")
    assert said.startswith("nudge changes the weights for good: ")
    assert said.splitlines()[1:] == [f"written to {output}: model"]
    before: Any = AutoModelForCausalLM.from_pretrained(model)
    after: Any = load_edited(model, output)[0]
    torch.testing.assert_close(after.lm_head.weight, before.lm_head.weight + 1.0)
    assert json.loads((output / "report.json").read_text()) == {"of my own": True}
    for option, value in (("--state", model), ("--keep", "facts.jsonl"), ("--layers", "4-8"), ("--name", "one")):
        code, _, error = corsa(capsys, *arguments, option, value, "--output", model.parent / "other")
        assert code == 2
        assert f"{option}: not for nudge, which changes the weights for good" in error
    assert corsa(capsys, *arguments, "--option", "size=1", "--output", model.parent / "other")[2].endswith(
        "nudge takes no option 'size'; its options are: times\n"
    )
    assert not (model.parent / "other").exists()


def test_corsa_protocol_lists_it_and_runs_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = corsa(capsys, "protocol", "--list")
    assert code == 0
    (row,) = (line for line in said.splitlines() if "nudge" in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "nudge", "Nudge: moves the head", "doi:10.1000/nudge", "", "testbed", "times"
    ]  # fmt: skip
    code, said, error = corsa(
        capsys, "protocol", "injection", "--model", model, "-r", model.parent / "a.jsonl", "-r",
        model.parent / "b.jsonl", "--method", "nudge", "--settings", "nudge=testbed", "--option", "nudge.times=2",
        "--output", model.parent / "runs", "--max-new-tokens", "4", "--quiet",
    )  # fmt: skip
    assert code == 0, error
    assert "Nudge: cross-set injection" in said
    run = json.loads((model.parent / "runs" / "nudge" / "run.json").read_text())
    assert run["method"] == {"method": "Nudge", "times": 2, "size": 0.02}
    assert "Nudge" in (model.parent / "runs" / "report.html").read_text(), "whatever its report holds"


def test_the_demo_offers_it_for_its_settings_for_the_testbed() -> None:
    assert demo_methods()["nudge"].title == "Nudge"
    assert "nudge" not in default_methods()
    with pytest.raises(SettingError, match=r"name some of .*rsft-mergekit, nudge, each once"):
        run_demo(Path("out"), methods=["nudge", "nudge"])


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.slow
def test_the_demo_runs_it(tmp_path: Path) -> None:
    console = Console(file=(tmp_path / "said").open("w"), width=160)
    demo = run_demo(tmp_path / "demo", Rounds(3, untouched=5), methods=["nudge"], console=console)
    assert [result.method for result in demo.results] == ["Nudge"]
    run = json.loads((tmp_path / "demo" / "nudge" / "run.json").read_text())
    assert run["method"]["size"] == 0.02


def test_the_benchmark_of_all_methods_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.methods import main as benchmark

    with pytest.raises(SystemExit):
        benchmark(["--help"])
    assert "rsft-mergekit,nudge}" in "".join(capsys.readouterr().out.split())


def test_easyedit_is_told_of_it(nudge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "__init__": "",
        "util/__init__": "",
        "util/alg_dict": "ALG_DICT = {}",
        "editors/__init__": "",
        "editors/batch_editor": "class BatchEditor:\n    is_batchable_method = staticmethod(lambda name: False)",
        "editors/editor": (
            "from types import SimpleNamespace as Anything\n"
            "class BaseEditor:\n"
            "    def __init__(self, alg_name):\n"
            "        self.alg_name, self.model_name, self.tok = alg_name, 'm', Anything(padding_side='left')"
        ),
    }
    for name, code in files.items():
        (nudge / "easyeditor" / name).parent.mkdir(parents=True, exist_ok=True)
        (nudge / "easyeditor" / f"{name}.py").write_text(code)
    for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
        monkeypatch.delitem(sys.modules, name)
    import easyedit_ext
    from easyedit_ext.registration import easyedit_methods

    try:
        easyedit_ext.register()
        easyedit = {name: sys.modules[f"easyeditor.{name}"] for name in ("util.alg_dict", "editors.batch_editor")}
        algorithms = easyedit["util.alg_dict"].ALG_DICT
        assert set(algorithms) == set(easyedit_methods()) > {"AlphaEditPlus", "RSFT", "PRUNE", "Nudge"}
        assert algorithms["Nudge"] is sys.modules["corsa_test_nudge"].apply_nudge
        assert easyedit["editors.batch_editor"].BatchEditor.is_batchable_method("Nudge")
        sides = {
            name: sys.modules["easyeditor.editors.editor"].BaseEditor(name).tok.padding_side
            for name in ("Nudge", "AlphaEditPlus", "RSFT", "ROME")
        }
        assert sides == {"Nudge": "right", "AlphaEditPlus": "right", "RSFT": "left", "ROME": "left"}
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
            del sys.modules[name]
