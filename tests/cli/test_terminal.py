"""What is shown is what was given: no markup, no control characters."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from corsa_plugins.cli.terminal import show


def test_labels_and_answers_are_shown_as_they_are(capsys):
    table = Table(title="title [red] of [/x]")
    table.add_column("[bold]label")
    table.add_row("needs corsa-plugins[gguf] :smile:")
    table.add_row(Text("an\x1b[2J answer\r\x07 \u202eright to left\u202c, שלום 🙂"))
    show(table)
    shown = capsys.readouterr().out
    for text in ("title [red] of [/x]", "[bold]label", "needs corsa-plugins[gguf] :smile:", "שלום 🙂"):
        assert text in shown
    assert not {"\x1b", "\r", "\x07", "\u202e"} & set(shown)
    assert "an[2J answer right to left" in shown
