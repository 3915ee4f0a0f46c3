"""The safetensors files of one directory as one set of tensors, sharded or not."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gemma_server.errors import ModelLoadError
from gemma_server.weights.pointer import refuse_pointer
from gemma_server.weights.source import Array

INDEX = "model.safetensors.index.json"
_JSON_BYTES = 64 << 20
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of one value
_CHUNK_BYTES = 1 << 22  # read this much at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class SafetensorsDir:
    """All tensors of a directory's safetensors files, by name.

    Raises:
        ModelLoadError: a file is missing or damaged, or holds something other than floats.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        for file, names in self._files().items():
            self._open(file, names)

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
        step = max(1, _CHUNK_BYTES // row_bytes)
        # Opened anew for each tensor: closing it takes the pages read so far out of memory.
        with safe_open(tensor.file, "numpy") as file:
            rows = file.get_slice(name)
            for row in range(0, len(out), step):
                stop = min(row + step, len(out))
                out[row:stop] = rows[row:stop]

    def _files(self) -> Mapping[Path, set[str] | None]:
        """The files, and the tensors that each must have where an index says so."""
        index = self.path / INDEX
        if not index.is_file():
            return dict.fromkeys(sorted(self.path.glob("*.safetensors")))
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelLoadError(f"{index}: no weight_map in it")
        files: dict[Path, set[str] | None] = {}
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelLoadError(f"{index}: {name} is in {str(file)[:100]!r}, no file's name")
            names = files.setdefault(self.path / file, set())
            assert names is not None
            names.add(name)
        return files

    def _open(self, path: Path, expected: set[str] | None) -> None:
        try:
            refuse_pointer(path)
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    header = file.get_slice(name)
                    shape, dtype = tuple(header.get_shape()), header.get_dtype()
                    self._add(name, StoredTensor(path, shape, dtype))
                    if expected is not None:
                        expected.discard(name)
        except SafetensorError as error:
            raise ModelLoadError(f"{path}: damaged safetensors file: {error}") from None
        except OSError as error:
            raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from None
        if expected:
            raise ModelLoadError(f"{path}: no tensor {min(expected)}, which {INDEX} puts there")

    def _add(self, name: str, tensor: StoredTensor) -> None:
        if name in self.tensors:
            raise ModelLoadError(f"{tensor.file}: {name} is in {self.tensors[name].file.name} too")
        if tensor.dtype not in _FLOATS:
            raise ModelLoadError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}; "
                f"only {', '.join(_FLOATS)} are supported, no quantised weights"
            )
        if 0 in tensor.shape or not tensor.shape:
            raise ModelLoadError(f"{tensor.file}: {name} has shape {list(tensor.shape)}")
        self.tensors[name] = tensor


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ModelLoadError: it cannot be read, is too large, or holds no object.
    """
    try:
        refuse_pointer(path)
        if path.stat().st_size > _JSON_BYTES:
            raise ModelLoadError(f"{path}: larger than {_JSON_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return found
