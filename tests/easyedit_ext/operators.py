"""For environments whose torchvision is built for CUDA and whose torch is not: it then has no operators, and fails to
import over their names, which EasyEdit and even transformers' Llama trip over. Importing this declares the names.

Needed before anything else is imported: ``python -m pytest -p tests.easyedit_ext.operators tests/easyedit_ext``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

__all__: list[str] = []

_library = torch.library.Library("torchvision", "FRAGMENT")  # what it declares is gone when it is


def _declare() -> None:
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare()
