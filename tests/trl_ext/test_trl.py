"""What is used of TRL and not promised by it is reached through one module, and its absence is one clear error."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl.trainer.utils
from packaging.requirements import Requirement
from trl import DPOTrainer

import trl_ext
from trl_ext import CoRSATrainer
from trl_ext._trl import CONTRACT, KNOWN, Need, PreferenceTrainer, broken_contract

HOUSE = Path(trl_ext.__file__).parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_the_installed_versions_keep_the_contract() -> None:
    assert broken_contract() is None
    assert {need.distribution for need in CONTRACT} == set(KNOWN)


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (Need("trl:DPOTrainer", "_no_such"), r"TRL .* has no trl\.DPOTrainer\._no_such"),
        (Need("trl:DPOTrainer", "_no_such", instance=True), r"has no trl\.DPOTrainer\._no_such"),
        (Need("trl:DPOTrainer", "_compute_loss", ("model", "rows")), r"has no trl\.DPOTrainer\._compute_loss\(rows\)"),
        (Need("trl:NoTrainer", "_compute_loss"), r"has no trl\.NoTrainer\._compute_loss"),
        (Need("trl.trainer.no_module", "Thing"), r"has no trl\.trainer\.no_module\.Thing"),
        (Need("peft", "NoModel"), r"PEFT .* has no peft\.NoModel.* pip install 'peft=="),
    ],
    ids=["method", "attribute", "parameter", "class", "module", "peft"],
)
def test_what_is_missing_is_named_with_the_version_that_has_it(need: Need, said: str) -> None:
    message = broken_contract([*CONTRACT, need])
    assert message is not None
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(message)
    assert f"{need.distribution}=={KNOWN[need.distribution]}" in message


def test_all_that_is_missing_is_said_at_once() -> None:
    message = broken_contract([Need("trl:DPOTrainer", "_one"), Need("trl:DPOTrainer", "_two"), Need("peft", "Three")])
    assert message is not None
    assert all(name in message for name in ("_one", "_two", "Three", "'trl==", "'peft=="))


@pytest.mark.parametrize(
    ("holder", "name", "instead"),
    [
        (DPOTrainer, "_compute_loss", None),
        (DPOTrainer, "_prepare_dataset", lambda self, dataset: dataset),
        (trl.trainer.utils, "FusedCausalLMOutput", None),
    ],
    ids=["a method", "a parameter", "a class"],
)
def test_what_another_trl_lacks_is_noticed(
    holder: Any, name: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if instead is None:
        monkeypatch.delattr(holder, name)
    else:
        monkeypatch.setattr(holder, name, instead)
    message = broken_contract()
    assert message is not None
    assert name in message


def test_corsa_train_with_a_trl_that_lacks_something_ends_with_one_message_and_code_2() -> None:
    code = """
from trl import DPOTrainer
del DPOTrainer._compute_loss
try:
    from trl_ext import CoRSATrainer
except Exception as error:
    print(type(error).__name__, error)
from corsa_plugins.cli.app import main
main(["train", "--help"])
"""
    result = python(code)
    assert result.returncode == 2
    assert "UnknownVersionError trl_ext cannot work with what is installed: TRL" in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if "error: " in line]
    assert "trl_ext cannot work with what is installed: TRL" in line
    assert "pip install 'trl==1.16.*'" in line
    assert "Traceback" not in result.stderr


def test_an_extension_without_its_framework_still_asks_for_the_extra() -> None:
    code = "import sys; sys.modules['trl'] = None\nfrom corsa_plugins.cli.app import main; main(['train', '--help'])"
    result = python(code)
    assert result.returncode == 2
    assert "corsa-plugins[trl]" in result.stderr


def test_the_known_versions_are_those_that_the_tests_run_with() -> None:
    lines = (HOUSE.parent / "constraints.txt").read_text().splitlines()
    pinned = {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    for name, known in KNOWN.items():
        assert pinned[name].startswith(f"{known}.")


def private_names(path: Path) -> set[str]:
    """Attributes with a leading underscore that a module gets or sets, and such methods that it defines."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_other_module_uses_a_private_name_of_the_trainer() -> None:
    """Nor is a name of ours one that `DPOTrainer` or a base of it has or mentions: it would be overwritten."""
    theirs = {name for base in DPOTrainer.__mro__ for name in vars(base)}
    for base in DPOTrainer.__mro__:
        for value in vars(base).values():
            theirs |= set(getattr(getattr(value, "__code__", None), "co_names", ()))
    for path in HOUSE.rglob("*.py"):
        if path.name != "_trl.py":
            assert not private_names(path) & theirs, path


def test_no_other_module_imports_from_inside_trl_or_peft() -> None:
    for path in HOUSE.rglob("*.py"):
        if path.name == "_trl.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                top, _, inner = node.module.partition(".")
                assert not (top in ("trl", "peft", "accelerate") and inner), f"{path}: {node.module}"


def test_a_subclass_is_called_what_its_base_is() -> None:
    hooks = ("check_dataset", "check_prepared", "add_reference", "evaluation_loss")
    assert all(getattr(CoRSATrainer, name) is not getattr(PreferenceTrainer, name) for name in hooks)

    class Mine(CoRSATrainer):
        """A user's own subclass."""

    assert (Mine._name, Mine._tag_names, Mine._paper) == (
        CoRSATrainer._name, CoRSATrainer._tag_names, CoRSATrainer._paper
    )  # fmt: skip
    assert CoRSATrainer._name == "CoRSA"
    assert DPOTrainer._name == "DPO"
