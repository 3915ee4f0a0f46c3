"""The safetensors files of one directory as one set of tensors, sharded or not."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from gemma_server.errors import ModelLoadError
from gemma_server.weights.arrays import Array
from gemma_server.weights.files import INCOMPLETE, read_json, require_file
from gemma_server.weights.stored_table import StoredTable, mapped_table

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# No Gemma comes near these limits; a larger hostile file would take long to parse.
_MOST_HEADER_BYTES, _MOST_INDEX_BYTES = 8 << 20, 8 << 20
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of one value
_CHUNK_BYTES = 1 << 22  # read this much at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored, and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class SafetensorsDir:
    """All tensors of a directory's safetensors files, by name.

    Raises:
        ModelLoadError: a file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        places = self._places()
        for file in sorted(set(places.values())) if places else self._whole_files():
            self._open(file)
        for name, file in places.items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise ModelLoadError(f"{file}: no tensor {name}, which {INDEX} puts there")

    def stored(self, names: Iterable[str]) -> Counter[str]:
        """Bytes of these tensors by dtype."""
        stored: Counter[str] = Counter()
        for tensor in map(self.tensors.__getitem__, names):
            stored[tensor.dtype] += math.prod(tensor.shape) * _FLOATS[tensor.dtype]
        return stored

    def copy(self, name: str, out: Array) -> None:
        """Write the tensor's values into `out`, of its shape or fewer rows, in `out`'s dtype."""
        tensor = self.tensors[name]
        row_bytes = math.prod(tensor.shape[1:]) * _FLOATS[tensor.dtype]
        step = max(1, _CHUNK_BYTES // max(1, row_bytes))
        # Opened anew for each tensor: closing it releases the pages read so far.
        with safe_open(tensor.file, "numpy") as file:
            rows = file.get_slice(name)
            for row in range(0, len(out), step):
                stop = min(row + step, len(out))
                out[row:stop] = rows[row:stop]

    def table(self, name: str) -> StoredTable | None:
        """The matrix as it lies in its file, if its rows can be read so."""
        tensor = self.tensors[name]
        raw = partial(np.memmap, tensor.file, np.uint8, "r")
        return mapped_table(raw, _start(tensor.file, name), tensor.dtype, tensor.shape)

    def require_floats(self, names: Iterable[str]) -> None:
        """Refuse tensors that do not hold plain floats.

        Raises:
            ModelLoadError: one of them does not; the text names it.
        """
        for name in names:
            tensor = self.tensors[name]
            if tensor.dtype not in _FLOATS or not tensor.shape:
                raise ModelLoadError(
                    f"{tensor.file}: {name} is stored as {tensor.dtype} {list(tensor.shape)}; "
                    f"only {', '.join(_FLOATS)} are supported, no quantized weights"
                )

    def _whole_files(self) -> list[Path]:
        """All safetensors files, for a directory without an index; hidden files do not count."""
        single = self.path / SINGLE
        found = [single] if single.is_file() else sorted(self.path.glob("*.safetensors"))
        return [file for file in found if not file.name.startswith(".")]

    def _places(self) -> dict[str, Path]:
        """Each tensor's file as the index says; an index beside a single file is a leftover."""
        index = self.path / INDEX
        if (self.path / SINGLE).is_file() or not index.is_file():
            return {}
        places = read_json(index, _MOST_INDEX_BYTES).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelLoadError(f"{index}: no weight_map in it")
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelLoadError(f"{index}: {name} is in {str(file)[:100]!r}, no file's name")
        return {name: self.path / file for name, file in places.items()}

    def _open(self, path: Path) -> None:
        if not path.exists():
            raise ModelLoadError(f"{path}: not there; {INCOMPLETE}")
        require_file(path)
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > _MOST_HEADER_BYTES:
                raise SafetensorError(f"its header has {header_bytes} bytes")
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    header = file.get_slice(name)
                    self._add(
                        name, StoredTensor(path, tuple(header.get_shape()), header.get_dtype())
                    )
        except SafetensorError as error:
            reason = f"damaged safetensors file: {error}; {INCOMPLETE}"
            raise ModelLoadError(f"{path}: {reason}") from None
        except OSError as error:
            raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from None

    def _add(self, name: str, tensor: StoredTensor) -> None:
        if name in self.tensors:
            raise ModelLoadError(f"{tensor.file}: {name} is in {self.tensors[name].file.name} too")
        self.tensors[name] = tensor


def _start(path: Path, name: str) -> int:
    """The byte of a file that is known to be whole at which a tensor begins.

    Source: huggingface/safetensors, README.md, "Format".
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin: int = json.loads(file.read(size))[name]["data_offsets"][0]
    return 8 + size + begin
