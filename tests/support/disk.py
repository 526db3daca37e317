"""A disk that is full."""

from __future__ import annotations

import resource
from contextlib import contextmanager


@contextmanager
def no_file_larger_than(size):
    """What a full disk does, for real: a write beyond ``size`` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
