"""From templates to HTML. Everything put into a template is escaped, but for what other templates gave."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["clean", "environment", "render", "shortened"]

_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML or UTF-8 cannot hold: control characters, halves of surrogate pairs, non-characters."""


def clean(value: object) -> str:
    """``value`` as text; what no page may hold is shown as a box."""
    return _UNFIT.sub("\ufffd", str(value))


def shortened(text: str, longest: int) -> str:
    """The text, cut if it is long, and then saying by how much."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters)"


@cache
def environment() -> Environment:
    """Of the templates in ``templates/``; whatever they say of a value is cleaned, then escaped."""
    return Environment(
        loader=PackageLoader("corsa_plugins.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """A template with its values."""
    return Markup(environment().get_template(template).render(values))
