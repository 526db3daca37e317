"""Processes that begin with everything imported: what a test of several of them would spend most of its time on."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

__all__ = ["forks"]

_IMPORTED = [
    "torch", "transformers", "mergekit.merge", "corsa_plugins.alphaedit.edited", "corsa_plugins.bench.evaluation",
    "corsa_plugins.bench.protocols", "corsa_plugins.cli.app", "corsa_plugins.methods.edit", "mergekit_ext.merging",
    "trl_ext.train", "tests.support.killed", "tests.support.several",
]  # fmt: skip


def forks() -> ForkServerContext:
    """For processes that are forked from one that has imported the packages and done nothing with them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(paths)):  # Python 3.11 tells it none of ours
        forkserver.ensure_running()
    return context
