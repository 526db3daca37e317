"""Templates with a field for a text."""

from __future__ import annotations

from corsa_plugins.errors import SettingError

__all__ = ["check_template"]


def check_template(template: str, *fields: str) -> None:
    """Refuse a template that has no room for a text.

    Raises:
        SettingError: One of the fields, such as ``{question}``, is not in it.
    """
    missing = [f"{{{field}}}" for field in fields if f"{{{field}}}" not in template]
    if missing:
        raise SettingError(f"the template has no {' and no '.join(missing)}: put it where the text is to go")
