"""A folder that looks like an installed package which brings techniques."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compress import Compressor


def installed(folder: Path, source: Path, classes: Iterable[type[Compressor]]) -> Path:
    """Return the folder, to be put on the path, with a copy of the source and its entry points."""
    name = source.stem
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{cls.name()} = {name}:{cls.__name__}" for cls in classes]
    (info / "entry_points.txt").write_text("\n".join(["[compress.compressors]", *lines, ""]))
    (folder / source.name).write_bytes(source.read_bytes())
    return folder
