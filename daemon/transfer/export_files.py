"""What samples are exported as: NDJSON with all that is known of them, CSV or NPZ with the essence.

`ffedge import` reads each of them back: the same features to the bit, the same labels, in the same
order. Samples without a label have an empty one in CSV and NPZ.
"""

from __future__ import annotations

import codecs
import csv
import math
import tempfile
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.lib import format as npy

from daemon.errors import TransferError


class ExportFile(ABC):
    """A file that samples are written to, in order.

    Args:
        file: Open for writing.
        input_shape: Of one sample.
    """

    def __init__(self, file: BinaryIO, input_shape: tuple[int, ...]) -> None:
        self._file, self._shape = file, input_shape

    @abstractmethod
    def write(self, sample: dict[str, Any]) -> None:
        """Add a sample, as `GET /samples` gives it with its features."""

    @abstractmethod
    def finish(self) -> None:
        """Write what must come after the last sample."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give up what it holds; the file itself is another's."""


class _Ndjson(ExportFile):
    def write(self, sample: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(sample) + b"\n")

    def finish(self) -> None:
        return


class _Csv(ExportFile):
    def __init__(self, file: BinaryIO, input_shape: tuple[int, ...]) -> None:
        super().__init__(file, input_shape)
        self._csv = csv.writer(codecs.getwriter("utf-8")(file))
        self._csv.writerow([*(f"x{n}" for n in range(math.prod(input_shape))), "label"])

    def write(self, sample: dict[str, Any]) -> None:
        label = sample["label"]
        self._csv.writerow([*sample["x"], "" if label is None else label])

    def finish(self) -> None:
        return


class _Npz(ExportFile):
    """The features wait in a file of their own, since how many they are comes before them."""

    def __init__(self, file: BinaryIO, input_shape: tuple[int, ...]) -> None:
        super().__init__(file, input_shape)
        self._features = tempfile.TemporaryFile(  # noqa: SIM115 - see close
            dir=Path(file.name).parent
        )
        self._labels: list[int | str] = []
        self._bytes = True

    def write(self, sample: dict[str, Any]) -> None:
        self._bytes &= sample["dtype"] == "uint8"
        self._features.write(np.array(sample["x"], dtype="<f4").tobytes())
        label = sample["label"]
        self._labels.append("" if label is None else label)

    def finish(self) -> None:
        dtype = np.dtype(np.uint8 if self._bytes else "<f4")
        rows = len(self._labels)
        whole = all(isinstance(label, int) for label in self._labels)
        labels = np.array(self._labels, dtype=np.int64 if whole else np.str_)
        self._features.seek(0)
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("x.npy", "w", force_zip64=True) as x:
                npy.write_array_header_1_0(
                    x,
                    {
                        "descr": npy.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (rows, *self._shape),
                    },
                )
                while chunk := self._features.read(1 << 20):
                    x.write(np.frombuffer(chunk, dtype="<f4").astype(dtype).tobytes())
            with archive.open("y.npy", "w", force_zip64=True) as y:
                npy.write_array(y, labels, allow_pickle=False)

    def close(self) -> None:
        self._features.close()


_KINDS: dict[str, type[ExportFile]] = {
    ".ndjson": _Ndjson,
    ".jsonl": _Ndjson,
    ".csv": _Csv,
    ".npz": _Npz,
}


def kind_of(path: Path) -> type[ExportFile]:
    """What a path's ending asks for.

    Raises:
        TransferError: It is none that we write, or the folder is not there.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise TransferError(f"{path}: found the ending {path.suffix!r}; wanted {', '.join(_KINDS)}")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise TransferError(f"{path}: wanted a file in a folder that exists")
    return kind
