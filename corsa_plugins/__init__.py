"""Knowledge editing for the pipelines you already have.

The names here are the everyday ones; everything else is imported from its module
(:mod:`corsa_plugins.data.requests`, :mod:`corsa_plugins.bench.evaluation`, :mod:`corsa_plugins.data.preferences`,
...). Heavy modules are loaded when one of their names is first used, and no framework beyond torch and transformers
ever is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corsa_plugins.bench.evaluation import Evaluation, evaluate
    from corsa_plugins.data.contradictions import check_requests
    from corsa_plugins.data.preferences import fill_target_old, to_preference_rows
    from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
    from corsa_plugins.data.requests import EditRequest, Probe, RequestError
    from corsa_plugins.errors import CorsaError, MissingExtraError

try:
    __version__ = version("corsa-plugins")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.0.0"

_HOME = {
    "CorsaError": "errors",
    "MissingExtraError": "errors",
    "Evaluation": "bench.evaluation",
    "evaluate": "bench.evaluation",
    "fill_target_old": "data.preferences",
    "to_preference_rows": "data.preferences",
    "EditRequest": "data.requests",
    "Probe": "data.requests",
    "RequestError": "data.requests",
    "check_requests": "data.contradictions",
    "read_probes": "data.reading",
    "read_requests": "data.reading",
    "write_probes": "data.reading",
    "write_requests": "data.reading",
}

__all__ = [
    "CorsaError",
    "EditRequest",
    "Evaluation",
    "MissingExtraError",
    "Probe",
    "RequestError",
    "__version__",
    "check_requests",
    "evaluate",
    "fill_target_old",
    "read_probes",
    "read_requests",
    "to_preference_rows",
    "write_probes",
    "write_requests",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"corsa_plugins.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
