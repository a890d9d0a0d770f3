"""Which layout a path holds.

| given | layout |
| --- | --- |
| a folder with `train-images-idx3-ubyte[.gz]` (or `t10k-`), or such a file | IDX |
| any other folder, or a `.zip` | ImageFolder: `<class>/<any name>.<jpg, png, ...>` |
| `.csv`, `.tsv` | numbers and a label a line |
| `.npz` | an array of features and one of labels |
| `.ndjson`, `.jsonl` | one JSON object a line |
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.datasets.csv_file import CsvFile
from daemon.datasets.idx import PARTS, has_idx, idx_folder, idx_pair
from daemon.datasets.image_folder import ImageFolder
from daemon.datasets.ndjson_file import NdjsonFile
from daemon.datasets.npz_file import NpzFile
from daemon.datasets.rows import Dataset
from daemon.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.datasets.image_folder import ToArray

KNOWN = "an IDX folder, an ImageFolder folder or .zip, a .csv, .npz or .ndjson file"


def open_dataset(
    path: Path,
    *,
    label_column: str | None = None,
    to_array: ToArray | None = None,
    parts: Sequence[str] = PARTS,
) -> Dataset:
    """The data set at a path; its size and header are checked, its rows not yet read.

    Args:
        path: What the table above says.
        label_column: Where the labels are in a CSV (a name, or a number from 1) or an NPZ (a name).
        to_array: What an image file becomes; None: its pixels as they are.
        parts: Of an IDX folder, the first of these that it has.

    Raises:
        DataError: Nothing is there, it is damaged, or its layout is not known.
    """
    kind = path.suffix.lower()
    if path.is_dir():
        for part in parts:
            if has_idx(path, part):
                return idx_folder(path, part)
    if path.is_dir() or (path.is_file() and kind == ".zip"):
        return ImageFolder(path, to_array)
    if path.is_file():
        if "idx3-ubyte" in path.name:
            return idx_pair(path)
        if kind in (".csv", ".tsv"):
            return CsvFile(path, label_column)
        if kind == ".npz":
            return NpzFile(path, label_column)
        if kind in (".ndjson", ".jsonl"):
            return NdjsonFile(path)
    found = f"a file ending in {kind!r}" if path.is_file() else "nothing"
    raise DataError(f"{path}: found {found}; wanted {KNOWN}")
