"""Whatever a template is given is text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from corsa_plugins.report.render import environment
from tests.support.html import Page


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_text_in_the_page(value):
    written = environment().from_string("{{ value }}").render(value=value)
    written.encode("utf-8")
    assert not set("<>\"'") & set(written)
    found = Page(f"<p>{written}</p>")
    assert found.elements == [("p", {})]


def test_what_a_template_is_not_given_is_missed():
    with pytest.raises(UndefinedError):
        environment().from_string("{{ value }}").render()
