"""``register()`` where EasyEdit is missing or broken, and on its release of 2023; test_base_editor.py has the clone."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import modeling_utils

import easyedit_ext
from corsa_plugins.errors import CorsaError
from easyedit_ext.registration import EasyEditError

ROOT = Path(easyedit_ext.__file__).parents[1]
RELEASE = "easyeditor==0.0.1.dev0"

REGISTER = """
import easyedit_ext
from easyedit_ext.registration import EasyEditError
try:
    easyedit_ext.register()
except EasyEditError as error:
    print(error)
else:
    print("registered")
"""

LOOK_AGAIN = """
from easyeditor.editors.batch_editor import BatchEditor
from easyeditor.editors.editor import ALG_DICT, BaseEditor
from transformers import modeling_utils

before = dict(ALG_DICT), BatchEditor.is_batchable_method, BaseEditor.__init__
easyedit_ext.register()
assert before == (dict(ALG_DICT), BatchEditor.is_batchable_method, BaseEditor.__init__), "registered twice"
assert ALG_DICT["AlphaEditPlus"] is easyedit_ext.apply_alphaedit_plus_to_model
assert ALG_DICT["RSFT"] is easyedit_ext.apply_rsft_to_model
assert ALG_DICT["ROME"].__module__.startswith("easyeditor.")
asked = [BatchEditor.is_batchable_method(name) for name in ("AlphaEditPlus", "RSFT", "MEMIT", "ROME")]
assert asked == [True, True, True, False], asked
assert not hasattr(modeling_utils, "find_pruneable_heads_and_indices"), "transformers was left changed"
print("looked at")
"""


def python(code: str, *path: Path, cwd: Path) -> str:
    """Run ``code`` in a Python of its own, with ``path`` in front of its own; what it printed last."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def package(folder: Path, alg_dict: str) -> Path:
    """An ``easyeditor`` whose table of methods begins with some code."""
    for name, code in (("__init__", ""), ("util/__init__", ""), ("util/alg_dict", alg_dict)):
        path = folder / "easyeditor" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return folder


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release, unpacked, without what it depends on."""
    folder = tmp_path_factory.mktemp("release")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), RELEASE]
    try:
        done = subprocess.run(download, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{RELEASE} cannot be downloaded: no answer within two minutes")
    if done.returncode:
        pytest.skip(f"{RELEASE} cannot be downloaded: {done.stderr.strip()[-300:]}")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No EasyEdit is imported yet, and what a test imports under its name does not stay."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
        monkeypatch.delitem(sys.modules, name)
    others = dict(sys.modules)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor" and name not in others]:
        del sys.modules[name]


@pytest.mark.usefixtures("without")
def test_without_easyedit_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "easyeditor").is_dir()])
    with pytest.raises(EasyEditError, match=r"github\.com/zjunlp/EasyEdit.*PYTHONPATH"):
        easyedit_ext.register()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library.part", "needs the module no_such_library.*pip install no-such-library"),
        ("try:\n    import sklearn_.x\nexcept ImportError as e:\n    raise RuntimeError('lazy') from e", "sklearn_"),
        ("from transformers import no_such_name", "ImportError.*no_such_name"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "do not fit each other"),
    ],
    ids=["missing", "missing further down", "a name", "torchvision"],
)
@pytest.mark.usefixtures("without")
def test_an_easyedit_that_cannot_be_imported_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, code))
    with pytest.raises(EasyEditError, match=said) as caught:
        easyedit_ext.register()
    assert str(caught.value).startswith(f"EasyEdit ({tmp_path / 'easyeditor'}) cannot be imported: ")
    assert not hasattr(modeling_utils, "find_pruneable_heads_and_indices"), "transformers was left changed"


@pytest.mark.usefixtures("without")
def test_a_method_of_that_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "ALG_DICT = {'RSFT': print}")
    editors = tmp_path / "easyeditor" / "editors"
    editors.mkdir()
    (editors / "__init__.py").touch()
    (editors / "batch_editor.py").write_text("class BatchEditor: pass")
    (editors / "editor.py").write_text("class BaseEditor: pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CorsaError, match="another method called RSFT"):
        easyedit_ext.register()
    known = sys.modules["easyeditor.util.alg_dict"].ALG_DICT
    assert known == {"RSFT": print}


@pytest.mark.slow
@pytest.mark.usefixtures("without")
def test_the_release_of_2023(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what it imports is installed, both methods are registered; elsewhere the missing module is named."""
    if os.environ.get("EASYEDIT_HOME"):
        assert (
            python("import tests.easyedit_ext.operators" + REGISTER + LOOK_AGAIN, release, cwd=tmp_path) == "looked at"
        )
        return
    monkeypatch.syspath_prepend(release)
    monkeypatch.chdir(tmp_path)
    message = ""
    try:
        easyedit_ext.register()
    except EasyEditError as error:
        message = str(error)
    if message:
        named = re.search(r"it needs the module (\w+)", message)
        assert named, message
        assert importlib.util.find_spec(named[1]) is None, f"{named[1]} is there: {message}"
    else:
        assert Path(sys.modules["easyeditor"].__file__ or "").is_relative_to(release)


def test_importing_the_package_imports_no_framework(tmp_path: Path) -> None:
    code = """
import sys, easyedit_ext
assert not {"torch", "transformers", "easyeditor"} & set(sys.modules)
for name in easyedit_ext.__all__:
    getattr(easyedit_ext, name)
print(sorted({"easyeditor", "trl", "mergekit", "trl_ext", "mergekit_ext"} & set(sys.modules)))
"""
    assert python(code, cwd=tmp_path) == "[]"
