"""An output directory is there whole or not at all."""

from __future__ import annotations

import pytest

from corsa_plugins.outputs import new_directory


def test_whatever_is_raised_nothing_is_left(tmp_path):
    def interrupted():
        with new_directory(tmp_path / "out") as partial:
            partial.mkdir()
            (partial / "half").write_text("of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
