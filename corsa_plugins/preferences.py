"""Requests as preferences, with old answers filled in: the everyday name of :mod:`corsa_plugins.data.preferences`."""

from corsa_plugins.data.preferences import *  # noqa: F403
from corsa_plugins.data.preferences import __all__ as __all__
