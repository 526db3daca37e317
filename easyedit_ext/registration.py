"""Making the methods known to EasyEdit, which has no plug-ins: three of its objects are extended, none replaced."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from corsa_plugins.errors import CorsaError, naming_extra
from corsa_plugins.methods.registry import method_specs
from easyedit_ext.method import EasyEditMethod

__all__ = ["EasyEditError", "easyedit_methods", "register"]

logger = logging.getLogger(__name__)

_MARK = "_easyedit_ext"
_URL = "https://github.com/zjunlp/EasyEdit"
_PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "hydra": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Packages that are not called like their modules."""


class EasyEditError(CorsaError, ImportError):
    """EasyEdit is not there or cannot be imported; the message names the module that is missing."""


def easyedit_methods() -> dict[str, EasyEditMethod]:
    """By ``alg_name``, every method whose spec says how EasyEdit calls it.

    Raises:
        MissingExtraError: What it names cannot be imported for want of a framework.
    """
    methods = {}
    for spec in method_specs():
        if spec.easyedit is not None:
            with naming_extra(f"method {spec.name} in EasyEdit"):
                method: EasyEditMethod = resolve_name(spec.easyedit)
            methods[method.alg_name] = method
    return methods


def register() -> None:
    """Make ``alg_name: AlphaEditPlus``, ``alg_name: RSFT`` and those of extensions known to EasyEdit; again is fine.

    After this ``ALG_DICT`` has them, ``batch_edit`` takes them, and ``BaseEditor`` sets the tokenizer's padding side
    for them as for its own methods of their kind. With a pair (model, tokenizer) for ``model_name``, which EasyEdit's
    evaluation cannot read, ``BaseEditor.model_name`` is the model's type for these methods. Nothing else changes;
    every method of EasyEdit stays as it is.

    Works with a clone of EasyEdit, and with its release of 2023 (easyeditor 0.0.1.dev0), which edits on GPUs only.

    Raises:
        EasyEditError: EasyEdit is not on the path, or a module it needs is missing; the message names it.
        CorsaError: EasyEdit has another method of one of these names.
    """
    algorithms = _import("easyeditor.util.alg_dict").ALG_DICT
    batch_editor = _import("easyeditor.editors.batch_editor").BatchEditor
    base_editor = _import("easyeditor.editors.editor").BaseEditor
    ours = {alg_name: method.apply for alg_name, method in easyedit_methods().items()}
    for alg_name, apply in ours.items():
        if algorithms.get(alg_name, apply) is not apply:
            raise CorsaError(
                f"EasyEdit has another method called {alg_name}, {algorithms[alg_name]!r}: it is left alone"
            )
    algorithms.update(ours)
    if not hasattr(batch_editor.is_batchable_method, _MARK):
        batch_editor.is_batchable_method = staticmethod(_or_ours(batch_editor.is_batchable_method))
    if not hasattr(base_editor.__init__, _MARK):
        base_editor.__init__ = _prepared(base_editor.__init__)


def _or_ours(is_batchable: Callable[[str], bool]) -> Callable[[str], bool]:
    @functools.wraps(is_batchable)
    def is_batchable_method(alg_name: str) -> bool:
        return alg_name in easyedit_methods() or is_batchable(alg_name)

    setattr(is_batchable_method, _MARK, True)
    return is_batchable_method


def _prepared(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        method = easyedit_methods().get(self.alg_name)
        if method is None:
            return
        if isinstance(self.model_name, str):
            self.tok.padding_side = method.padding_side
        else:
            self.model_name = str(self.model.config.model_type)

    setattr(__init__, _MARK, True)
    return __init__


def _import(name: str) -> ModuleType:
    spec = importlib.util.find_spec("easyeditor")
    if spec is None:
        raise EasyEditError(
            f"EasyEdit is not on the path (there is no module easyeditor): clone {_URL} and run Python in the clone, "
            "or add it to PYTHONPATH",
            name="easyeditor",
        )
    try:
        with _moved_names():
            return importlib.import_module(name)
    except Exception as error:
        where = next(iter(spec.submodule_search_locations or ()), "easyeditor")
        raise EasyEditError(f"EasyEdit ({where}) cannot be imported: {_reason(error)}", name=name) from error


def _reason(error: BaseException) -> str:
    """What to do about it. Some libraries wrap the error that tells, so the first cause is looked for."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = _PACKAGES.get(error.name.partition(".")[0], error.name.partition(".")[0].replace("_", "-"))
            return f"it needs the module {error.name}, which is not installed: pip install {package}"
        error = error.__cause__ or error.__context__ or error
    text = f"{type(error).__name__}: {error}"
    if "torchvision" in text:
        text += "; torch and torchvision are builds that do not fit each other: install both from the same index"
    return text


_MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


@contextmanager
def _moved_names() -> Iterator[None]:
    """Within the block the 2023 release finds what its BLIP-2 imports, where transformers 4 had it."""
    from transformers import modeling_utils, pytorch_utils

    added = [name for name in _MOVED if not hasattr(modeling_utils, name)]
    for name in added:
        setattr(modeling_utils, name, getattr(pytorch_utils, name, functools.partial(_gone, name)))
    try:
        yield
    finally:
        for name in added:
            delattr(modeling_utils, name)


def _gone(name: str, *args: Any, **kwargs: Any) -> Any:
    raise CorsaError(f"transformers has no {name} any more: BLIP-2 of easyeditor 0.0.1.dev0 needs transformers 4")
