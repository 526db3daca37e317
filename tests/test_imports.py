"""What importing imports: the frameworks stay outside until they are used, and say so when they are missing."""

from __future__ import annotations

import importlib.util
import pkgutil

import pytest

import corsa_plugins
from corsa_plugins.cli.app import COMMANDS
from tests.support.python import FRAMEWORKS, blocked, error_of, python

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(corsa_plugins.__path__, "corsa_plugins.")
    if not name.endswith("__main__")
]


def test_the_package_is_light():
    loaded = python("import corsa_plugins, sys; corsa_plugins.__version__; print(*sys.modules)").split()
    assert not {"torch", "transformers", "pydantic", *FRAMEWORKS} & set(loaded)


def test_no_module_of_corsa_plugins_imports_a_framework():
    # transformers itself imports some of them where it finds them, so they are taken away, not looked for
    code = f"import importlib\nfor name in {MODULES!r}: importlib.import_module(name)\nprint('all imported')"
    assert blocked(FRAMEWORKS, code).strip() == "all imported"


def test_trl_ext_works_without_the_other_frameworks():
    others = ["easyeditor", "mergekit", "easyedit_ext", "mergekit_ext"]
    assert blocked(others, "import trl_ext; print('imported')").strip() == "imported"
    if importlib.util.find_spec("trl"):
        code = "import trl_ext\nfor name in trl_ext.__all__: getattr(trl_ext, name)\nprint('all there')"
        assert blocked(others, code).strip() == "all there"


def test_easyedit_ext_imports_without_any_framework():
    others = [*FRAMEWORKS, "trl_ext", "mergekit_ext"]
    code = "import easyedit_ext\nfor name in easyedit_ext.__all__: getattr(easyedit_ext, name)\nprint('all there')"
    assert blocked(others, code).strip() == "all there"


def test_the_command_line_does_not_load_torch_to_be_asked_for_help():
    code = (
        "import contextlib, os, sys\nfrom corsa_plugins.cli.app import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, 'w')): main(ARGUMENTS)\n"
        "print(*sys.modules)"
    )
    for arguments in (["--help"], ["edit", "--help"], ["merge-sweep", "--help"]):
        loaded = python(code.replace("ARGUMENTS", repr(arguments))).split()
        assert "corsa_plugins.cli.app" in loaded
        assert not {"torch", "transformers", *FRAMEWORKS} & set(loaded)
        commands = {name for name in loaded if name.startswith("corsa_plugins.cli.commands.")}
        if arguments[0] in COMMANDS:
            assert commands == {f"corsa_plugins.cli.commands.{COMMANDS[arguments[0]].partition(':')[0]}"}


def test_every_public_name_is_there():
    for name in corsa_plugins.__all__:
        assert getattr(corsa_plugins, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        corsa_plugins.evalute  # noqa: B018


def test_a_missing_framework_is_one_line_that_names_the_extra():
    code = (
        "from corsa_plugins.errors import require, MissingExtraError\n"
        "try: require('trl', 'trl', what='corsa train')\n"
        "except MissingExtraError as error: print(error)"
    )
    assert blocked(["trl"], code) == "corsa train needs TRL: pip install 'corsa-plugins[trl]'\n"


def test_an_adapter_without_peft_is_one_line_too(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "target_new": "b"}\n')
    arguments = ["evaluate", "--model", "m", "--adapter", "a", "--requests", str(tmp_path / "r.jsonl")]
    code = (
        "import contextlib, io, sys\nfrom corsa_plugins.cli.app import main\nsys.stderr = io.StringIO()\n"
        f"try: main({arguments!r})\nexcept SystemExit as exit: print(exit.code, sys.stderr.getvalue())"
    )
    out = blocked(["peft"], code)
    code, _, said = out.partition(" ")
    assert (code, error_of(said)) == ("2", "error: an adapter needs PEFT: pip install 'corsa-plugins[trl]'")


def test_a_module_that_fails_inside_keeps_its_own_error(tmp_path):
    (tmp_path / "corsa_test_framework.py").write_text("import corsa_no_such_dependency\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom corsa_plugins.errors import *\n"
        "try: require('corsa_test_framework', 'trl')\nexcept MissingExtraError: print('hidden')\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    assert python(code).strip() == "corsa_no_such_dependency"
