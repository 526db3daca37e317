"""Another package with an entry point, as pip would install it."""

from __future__ import annotations

from pathlib import Path


def write_package(site: Path, name: str, source: str, entry_points: str) -> None:
    """A module and its metadata in ``site``, which belongs on the path.

    Args:
        site: A folder.
        name: Of the module.
        source: Its text.
        entry_points: As in ``entry_points.txt``.
    """
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (site / f"{name}.py").write_text(source)
