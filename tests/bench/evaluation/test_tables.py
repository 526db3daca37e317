"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console

from corsa_plugins.bench.evaluation import change_table, summary_table
from tests.support.taught import run


def test_tables_show_the_means_under_their_labels(taught_llama, tiny_llama, tiny_tokenizer):
    before = run(tiny_llama, tiny_tokenizer, label="before")
    after = run(taught_llama, tiny_tokenizer, label="after")
    for table in (summary_table([before, after]), change_table(before, after)):
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table)
        text = console.export_text()
        (row,) = [line for line in text.splitlines() if "Efficacy, %" in line]
        assert "66.7" in row
        assert "before" in text
        assert "after" in text
