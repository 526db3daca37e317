"""Edit requests and probes: the everyday name of :mod:`corsa_plugins.data.requests`."""

from corsa_plugins.data.requests import *  # noqa: F403
from corsa_plugins.data.requests import __all__ as __all__
