"""Runs of several updates on one model, as papers measure them, with any method.

* :mod:`~corsa_plugins.bench.protocols.plan`: which updates, in which order, and what is asked when;
* :mod:`~corsa_plugins.methods.spec`: what a method is, and what it has to offer;
* :mod:`~corsa_plugins.methods.alphaedit`, :mod:`~corsa_plugins.methods.rsft`: methods that come with the package;
* :mod:`~corsa_plugins.methods.registry`: methods by name, also those of extensions;
* :mod:`~corsa_plugins.bench.protocols.run`: the run, which can be stopped and taken up again;
* :mod:`~corsa_plugins.bench.protocols.shares`: the same with shares of the later updates, and what each forgets;
* :mod:`~corsa_plugins.bench.protocols.comparison`: several methods through one plan;
* :mod:`~corsa_plugins.bench.protocols.result`: every evaluation, and the summary that follows from them.
"""

from corsa_plugins.bench.protocols.comparison import MethodRun, run_methods
from corsa_plugins.bench.protocols.plan import (
    UpdatePlan,
    UpdateSet,
    cross_set_injection,
    make_plan,
    sequential_batches,
    single_update,
    temporal_stream,
)
from corsa_plugins.bench.protocols.result import ProtocolResult, ProtocolSummary, UpdateSummary, comparison_table
from corsa_plugins.bench.protocols.run import ProtocolError, run_protocol
from corsa_plugins.bench.protocols.shares import forgetting_points, parse_shares, run_shares, with_share
from corsa_plugins.methods.alphaedit import AlphaEditMethod
from corsa_plugins.methods.registry import make_method, method_names
from corsa_plugins.methods.rsft import RSFTMethod
from corsa_plugins.methods.spec import Method, Session

__all__ = [
    "AlphaEditMethod",
    "Method",
    "MethodRun",
    "ProtocolError",
    "ProtocolResult",
    "ProtocolSummary",
    "RSFTMethod",
    "Session",
    "UpdatePlan",
    "UpdateSet",
    "UpdateSummary",
    "comparison_table",
    "cross_set_injection",
    "forgetting_points",
    "make_method",
    "make_plan",
    "method_names",
    "parse_shares",
    "run_methods",
    "run_protocol",
    "run_shares",
    "sequential_batches",
    "single_update",
    "temporal_stream",
    "with_share",
]
