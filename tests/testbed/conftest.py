"""One reduced testbed, built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.testbed import Testbed, load_testbed, reduced_recipe


@pytest.fixture(scope="session")
def reduced_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corsa-cache")


@pytest.fixture(scope="session")
def reduced(reduced_cache: Path) -> Testbed:
    return load_testbed(reduced_recipe(), cache_dir=reduced_cache)


@pytest.fixture(scope="session")
def shipped() -> Testbed:
    """Read-only: tests that change the model load their own."""
    return load_testbed()
