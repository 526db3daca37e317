"""A wheel built from this tree works outside it, package data included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    result = subprocess.run([*command, "--quiet"], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("corsa_plugins-*.whl")
    return built


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "corsa_plugins/testbed/data/model.safetensors" in names
    assert "corsa_plugins/py.typed" in names
    assert "trl_ext/trainer.py" in names
    assert "corsa_plugins/alphaedit/presets/llama3-8b.yaml" in names
    assert "corsa_plugins/rsft/presets/testbed.yaml" in names
    assert "corsa_plugins/report/assets/report.css" in names
    assert "lm_eval_ext/tasks/edits.yaml" in names
    assert "trl_ext/accelerate_configs/fsdp2.yaml" in names
    templates = {path.name for path in (ROOT / "corsa_plugins" / "report" / "templates").iterdir()}
    assert templates == {name.rpartition("/")[2] for name in names if "report/templates/" in name}
    assert "page.html" in templates
    assert "easyedit_ext/hparams/AlphaEditPlus/llama3-8b.yaml" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops <= {"corsa_plugins", "trl_ext", "easyedit_ext", "mergekit_ext", "lm_eval_ext"}


def test_an_installed_wheel_works_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import corsa_plugins, trl_ext, pathlib\n"
        "from corsa_plugins.testbed import load_testbed\n"
        "from trl_ext import CoRSATrainer\n"
        "testbed = load_testbed()\n"
        "print(pathlib.Path(corsa_plugins.__file__).parent, testbed.path, len(testbed.world.facts))\n"
    )
    # -P keeps the working directory off the path; PYTHONPATH goes before the development install.
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
    )
    assert result.returncode == 0, result.stderr
    package, path, facts = result.stdout.split()
    assert Path(package) == target / "corsa_plugins"
    assert Path(path).is_relative_to(target)
    assert int(facts) >= 800
