"""What has changed in EasyEdit since the tests were last run in a clone of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.easyedit_ext.clone import COMMIT, DATE, changes

HOME = os.environ.get("EASYEDIT_HOME")


@pytest.mark.skipif(HOME is None, reason="EASYEDIT_HOME names no clone of EasyEdit")
def test_the_files_that_we_rely_on_are_those_of_the_commit_that_was_tested() -> None:
    told = changes(Path(str(HOME)))
    assert not told, (
        f"since {COMMIT} of {DATE}, in which these tests were last run: {'; '.join(told)}. Where all other tests pass "
        f"and the differences (git diff {COMMIT[:7]} -- easyeditor) change nothing for us, write the commit and hashes "
        "of this clone into tests/easyedit_ext/clone.py"
    )


def test_a_changed_and_a_lost_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "easyeditor" / "util").mkdir(parents=True)
    file = tmp_path / "easyeditor" / "util" / "one.py"
    file.write_bytes(b"a = 1\n")
    files = {"util/one.py": "1337a530cbc1bd7d20aee2d80f1f174a9182417d"}  # of git hash-object
    assert changes(tmp_path, files) == []
    file.write_bytes(b"a = 2\n")
    assert changes(tmp_path, files) == ["easyeditor/util/one.py is another"]
    file.unlink()
    assert changes(tmp_path, files) == ["easyeditor/util/one.py is gone"]


def test_the_page_names_the_commit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "easyedit.md").read_text(encoding="utf-8")
    assert COMMIT[:7] in page
    assert DATE in page
