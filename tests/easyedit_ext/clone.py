"""Which commit of EasyEdit the tests were last run in, and what has changed since in the files that we rely on.

    python -m tests.easyedit_ext.clone ~/EasyEdit

says it of a clone. Where something has changed: run the tests in that clone, read the differences, and write its commit
and its files' hashes, which the command prints, in place of these.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["COMMIT", "DATE", "FILES", "changes", "found"]

COMMIT, DATE = "14cea8245f06715684592ab55184939b99d70784", "2026-07-14"

FILES = {
    "util/alg_dict.py": "1cf645c029dfb2a9daec2cf523ae4f23d760111a",
    "util/hparams.py": "31990a3d0e367a0b5c3963f8ba30c860aee906ee",
    "editors/batch_editor.py": "850f843a70e675b5c79217b554d55ada5148c97b",
    "editors/editor.py": "c5e429b068085d938173844edf7a4b9735725e75",
    "editors/utils.py": "3a508461f5d7b9a4dbb3b78f7bb7a2c930589707",
    "models/alphaedit/AlphaEdit_hparams.py": "fb0c89de4d7e81ba0d3cfa38a057ad3bb2bd6030",
    "models/alphaedit/AlphaEdit_main.py": "60e28ea041d70128c54ef71e8d6939e372ff8186",
    "models/alphaedit/compute_ks.py": "2d33ef079b2f46689ba8cf90fd44490d6ab06433",
    "models/alphaedit/compute_z.py": "52ab74c252fffb8b2b776019b771a44db7f01139",
    "models/memit/compute_ks.py": "acc35b596b10701ce268f2811e73f3e28fd05def",
    "models/memit/compute_z.py": "3433b7a61241b1ceab4b3d3527705d71b2bee403",
    "models/memit/memit_hparams.py": "a4cfde1cae9e1d6116210897365a0b7ba9fabc64",
    "models/memit/memit_main.py": "bc0602ae7ddf17bbfb6528e6e905be6d3a74c4bb",
    "models/rome/compute_u.py": "135ae341466b4e710e423f5449a06c54d968ae5f",
    "models/rome/compute_v.py": "9e4a18e860662e669b9ed054bb29be5f6108435b",
    "models/rome/layer_stats.py": "9774182fde66d16d9d9923d1fcd06ee8c266b063",
    "models/rome/repr_tools.py": "23cb1b26ca766ea3e568d213abdafa83343b3cf8",
    "models/rome/rome_hparams.py": "5c914fd58bfedc94e554fc942b5fbf570dac3269",
    "models/rome/rome_main.py": "4bb1bb78fb095c2be5202b6d930480f3d3b50f23",
}
"""By path in ``easyeditor/``: git's hash of the file's content in that commit."""


def found(clone: Path, files: Mapping[str, str] = FILES) -> dict[str, str | None]:
    """The hashes of a clone's own files; ``None`` for what it has not."""
    return {name: _hash(clone / "easyeditor" / name) for name in files}


def changes(clone: Path, files: Mapping[str, str] = FILES) -> list[str]:
    """What is not as it was, file by file."""
    now = found(clone, files)
    return [
        f"easyeditor/{name} is {'gone' if now[name] is None else 'another'}"
        for name, then in files.items()
        if now[name] != then
    ]


def _hash(file: Path) -> str | None:
    if not file.is_file():
        return None
    content = file.read_bytes().replace(b"\r\n", b"\n")  # a clone on Windows has other line ends
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    place = Path(sys.argv[1]).expanduser()
    said = changes(place)
    sys.stdout.write(("\n".join(said) or f"as in {COMMIT} of {DATE}") + "\n")
    if said:
        sys.stdout.write("".join(f'    "{name}": "{digest}",\n' for name, digest in found(place).items() if digest))
    sys.exit(bool(said))
