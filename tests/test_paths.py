"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.paths import user_path


def test_a_home_is_found_and_one_that_nobody_has_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path(Path("a/~")) == Path("a/~")
    assert user_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    with pytest.raises(RuntimeError):
        Path("~nobody-of-that-name/a").expanduser()
