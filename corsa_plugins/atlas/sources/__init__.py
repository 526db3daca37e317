"""Where facts come from: packages of the registry; the next one is a file and a line in :data:`SOURCES`."""

from corsa_plugins.atlas.sources.elements import ELEMENTS
from corsa_plugins.atlas.sources.geography import GEOGRAPHY
from corsa_plugins.atlas.sources.peoples import PEOPLES
from corsa_plugins.atlas.sources.source import Source, missing_packages

__all__ = ["SOURCES", "Source", "missing_packages"]

SOURCES: tuple[Source, ...] = (GEOGRAPHY, PEOPLES, ELEMENTS)
"""All there are, in the order in which they are asked."""
