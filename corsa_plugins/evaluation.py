"""What an edit did: the everyday name of :mod:`corsa_plugins.bench.evaluation`."""

from corsa_plugins.bench.evaluation import *  # noqa: F403
from corsa_plugins.bench.evaluation import __all__ as __all__
