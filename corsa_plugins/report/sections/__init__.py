"""The sections of a page. A section is one value, a :class:`~corsa_plugins.report.sections.section.Section`, in a file
of its own; one more is a file and a line here.

Another package's is an entry point in the group ``corsa_plugins.sections``: its name is the section's, its value the
``Section``.
"""

from corsa_plugins.registry import Registry
from corsa_plugins.report.sections.ability import ABILITY
from corsa_plugins.report.sections.answers import ANSWERS
from corsa_plugins.report.sections.asked import ASKED
from corsa_plugins.report.sections.code import CODE
from corsa_plugins.report.sections.conflicts import CONFLICTS
from corsa_plugins.report.sections.curvature import CURVATURE
from corsa_plugins.report.sections.drift import DRIFT
from corsa_plugins.report.sections.effects import EFFECTS
from corsa_plugins.report.sections.forgetting import FORGETTING
from corsa_plugins.report.sections.history import HISTORY
from corsa_plugins.report.sections.merging import MERGING
from corsa_plugins.report.sections.results import RESULTS
from corsa_plugins.report.sections.section import Section
from corsa_plugins.report.sections.sweep import SWEEP
from corsa_plugins.report.sections.wild import WILD

__all__ = [
    "ABILITY",
    "ANSWERS",
    "ASKED",
    "CODE",
    "CONFLICTS",
    "CURVATURE",
    "DRIFT",
    "EFFECTS",
    "FORGETTING",
    "HISTORY",
    "MERGING",
    "RESULTS",
    "SECTIONS",
    "SWEEP",
    "WILD",
    "Section",
    "in_order",
]

SECTIONS: Registry[Section] = Registry(
    Section,
    "corsa_plugins.sections",
    (
        RESULTS,
        WILD,
        CODE,
        EFFECTS,
        HISTORY,
        FORGETTING,
        MERGING,
        SWEEP,
        CONFLICTS,
        CURVATURE,
        DRIFT,
        ABILITY,
        ANSWERS,
        ASKED,
    ),
)
"""All sections by name."""


def in_order() -> list[Section]:
    """All sections, in the order of a page."""
    return sorted(SECTIONS.values(), key=lambda section: section.closing)
