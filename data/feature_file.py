"""Features of one audio file on disk, as ``.npz`` or ``.safetensors``, without holding them whole.

    frames, in whatever order -> a nameless file, frame by frame -> the named one, layer by layer

Both formats hold ``features``, ``times`` and ``metadata``, a JSON object. They are written by hand
because numpy and safetensors would want hours of frames in memory; the tests read them with both.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Literal, final

import numpy as np
import numpy.typing as npt

from etude.data.files import json_bytes, published

Format = Literal["npz", "safetensors"]
Precision = Literal["float32", "float16"]

_CHUNK_BYTES = 1 << 24
_IN_MEMORY_BYTES = 1 << 24
"""Larger files go to disk while they are made."""

_SAFETENSORS_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}


@final
class FeatureSpool:
    """Frames (F, L, D) of a file that is being embedded.

    :param folder: takes what does not fit into a little memory; nothing of it stays.
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=str(folder))
        self._dtype = np.dtype(precision)
        self._row: tuple[int, int] = (0, 0)
        self.frames = 0
        self.finite = True

    def take(self, first_frame: int, features_FLD: npt.NDArray[np.float32]) -> None:
        """Puts frames in their place."""
        # What float16 cannot hold becomes infinity, and is told with `finite`.
        with np.errstate(over="ignore"):
            rows = features_FLD.astype(self._dtype)
        self._row = (rows.shape[1], rows.shape[2])
        self.finite = self.finite and bool(np.isfinite(rows).all())
        self.frames += len(rows)
        self._file.seek(first_frame * self._row_bytes)
        self._file.write(rows.tobytes())

    def close(self) -> None:
        """Lets the nameless file go."""
        self._file.close()

    def stored(self) -> "StoredArray":
        """What was taken, as (F, D), or (L, F, D) of several layers."""
        layers, width = self._row
        shape = (self.frames, width) if layers == 1 else (layers, self.frames, width)
        return StoredArray(shape, self._dtype, self._chunks())

    @property
    def _row_bytes(self) -> int:
        return self._row[0] * self._row[1] * self._dtype.itemsize

    def _chunks(self) -> Iterator[bytes]:
        step = max(1, _CHUNK_BYTES // self._row_bytes)
        for layer in range(self._row[0]):
            self._file.seek(0)
            for first in range(0, self.frames, step):
                frames = min(step, self.frames - first)
                content = self._file.read(frames * self._row_bytes)
                rows = np.frombuffer(content, self._dtype).reshape(frames, *self._row)
                yield rows[:, layer].tobytes()


@final
class StoredArray:
    """An array that is written in chunks, in C order."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Iterator[bytes]):
        self.shape = shape
        self.dtype = dtype
        self.chunks = chunks

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "StoredArray":
        """One that is in memory."""
        return cls(array.shape, array.dtype, iter([array.tobytes()]))

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks together."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_features(
    path: Path, features: StoredArray, times: npt.NDArray[np.float64], metadata: Mapping[str, Any]
) -> None:
    """Publishes a file in the format of its name; equal content gives equal bytes.

    :param times: of the frames, in seconds: one for each, or one alone for one vector.
    :param metadata: JSON.
    """
    text = json_bytes(metadata, indent=None).decode().strip()
    arrays = {"times": StoredArray.of(times), "features": features}
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path) as file:
        if path.suffix == ".npz":
            _write_npz(file, {**arrays, "metadata": StoredArray.of(np.array(text))})
        else:
            _write_safetensors(file, arrays, text)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of a file that :func:`write_features` wrote; None of any other file."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                metadata = json.loads(str(arrays["metadata"]))
        else:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, _CHUNK_BYTES)))
                metadata = json.loads(header["__metadata__"]["metadata"])
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
    return metadata if isinstance(metadata, dict) else None


def _write_npz(file: BinaryIO, arrays: Mapping[str, StoredArray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(
                    entry,
                    {
                        "descr": np.lib.format.dtype_to_descr(array.dtype),
                        "fortran_order": False,
                        "shape": array.shape,
                    },
                )
                for chunk in array.chunks:
                    entry.write(chunk)


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, StoredArray], metadata: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "np", "metadata": metadata}}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for array in arrays.values():
        for chunk in array.chunks:
            file.write(chunk)
