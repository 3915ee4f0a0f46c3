"""GGUF files: a checked reader of the header, and tensors dequantised with the `gguf` package.

Layout: github.com/ggml-org/ggml, docs/gguf.md. A header is hostile until proven otherwise: every
count, length, offset and product in it is checked against the file's size before it is used.
"""

import math
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.errors import ModelLoadError
from gemma_server.weights.arrays import on_all_cores
from gemma_server.weights.blocks import Blocks
from gemma_server.weights.files import INCOMPLETE, require_file
from gemma_server.weights.gguf.blocks import unpack_blocks
from gemma_server.weights.stored_table import StoredTable, mapped_table

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {  # GGUF's value type -> NumPy's little-endian dtype
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
# No Gemma comes near these limits; without them a hostile header could take minutes to parse.
_MOST_ENTRIES, _MOST_STRINGS = 10_000, 1 << 20
_CHUNK_BYTES = 1 << 18  # dequantised at a time: it stays in the CPU's caches


Chunk = tuple[slice, npt.NDArray[np.uint8]]  # rows of a tensor, as they are stored


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. `shape` is in NumPy's order (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    type: int  # ggml's number
    start: int
    nbytes: int

    @property
    def type_name(self) -> str:
        """ggml's name of the type, such as Q4_K."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(self.type).name


class GgufFile:
    """An opened GGUF file: `metadata` by key, `tensors` by name.

    Raises:
        ModelLoadError: not a GGUF file, an unknown version, or a header that contradicts its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_file(path)
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < len(_MAGIC):
                    raise ModelLoadError(f"{path}: not a GGUF file (it has {size} bytes)")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from None
        self.metadata, self.tensors = _Header(path, self._data).parse()

    def refuse_undecodable(self, names: Iterable[str]) -> None:
        """Refuse a tensor of a type that cannot be dequantised.

        Raises:
            ModelLoadError: one of the tensors has such a type; the text names it.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        examples = {self.tensors[name].type: self.tensors[name] for name in names}
        for tensor in examples.values():
            kind = GGMLQuantizationType(tensor.type)
            try:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError:
                raise ModelLoadError(
                    f"{self.path}: tensor {tensor.name} is stored as {kind.name}, "
                    "which is not supported"
                ) from None

    def copy(self, name: str, out: npt.NDArray[Any], first: int = 0) -> None:
        """Write the tensor's values from row `first` on into `out`, of its shape or fewer rows, in
        `out`'s dtype.

        Raises:
            KeyError: there is no such tensor.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.type)
        flat = out.reshape(-1, tensor.shape[-1])

        def widen(chunk: Chunk) -> None:
            rows, raw = chunk
            flat[rows] = dequantize(raw, kind)

        on_all_cores(widen, self._chunks(tensor, len(flat), first))
        self._forget(tensor)

    def copy_blocks(self, name: str, out: Blocks, first: int = 0) -> None:
        """Write the tensor from row `first` on into `out`, of its shape or fewer rows; a type of
        EXACT_IN_BLOCKS."""
        tensor = self.tensors[name]

        def unpack(chunk: Chunk) -> None:
            rows, raw = chunk
            blocks = raw.reshape(*out.scales[rows].shape, -1)
            values, out.scales[rows] = unpack_blocks(blocks, tensor.type_name)
            out.values[rows].reshape(values.shape)[...] = values

        on_all_cores(unpack, self._chunks(tensor, len(out.values), first))
        self._forget(tensor)

    def table(self, name: str) -> StoredTable | None:
        """The matrix as it lies in the file, if its rows can be read so."""
        tensor = self.tensors[name]
        raw = partial(np.frombuffer, self._data, np.uint8)
        return mapped_table(raw, tensor.start, tensor.type_name, tensor.shape)

    def _chunks(self, tensor: Tensor, rows: int, first: int) -> Iterator[Chunk]:
        """Rows of a tensor as stored, from `first` on, in chunks [rows, bytes] that fit a CPU's
        cache, each with its place among them."""
        stored = math.prod(tensor.shape[:-1])
        raw = np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.start).reshape(stored, -1)
        step = max(1, _CHUNK_BYTES // raw.shape[1])
        for row in range(0, rows, step):
            stop = min(row + step, rows)
            yield slice(row, stop), raw[first + row : first + stop]

    def _forget(self, tensor: Tensor) -> None:
        """Release a tensor's pages, so that the file does not stay in memory beside its values."""
        start = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        self._data.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.nbytes - start)


class _Header:
    """A cursor over the header that never reads beyond the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self._take(4) != _MAGIC:
            raise ModelLoadError(f"{self._path}: not a GGUF file")
        version = self._number("<I")
        if version not in _VERSIONS:
            if struct.pack(">I", version) in (struct.pack("<I", known) for known in _VERSIONS):
                raise ModelLoadError(f"{self._path}: big-endian GGUF files are not supported")
            raise ModelLoadError(f"{self._path}: GGUF version {version}; only {_VERSIONS} are read")
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._checked(pair_count, 13, "metadata entries", _MOST_ENTRIES)):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        tensor_count = self._checked(tensor_count, 24, "tensors", _MOST_ENTRIES)
        found = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"alignment {alignment!r} is no power of two")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        end = base
        for tensor in found:
            tensor = replace(tensor, start=base + tensor.start)
            if tensor.start + tensor.nbytes > len(self._data):
                raise self._damaged(
                    f"tensor {tensor.name} ends at byte {tensor.start + tensor.nbytes}, "
                    f"but the file has {len(self._data)}: it is cut short; {INCOMPLETE}"
                )
            if tensor.name in tensors:
                raise self._damaged(f"tensor {tensor.name} occurs twice")
            tensors[tensor.name] = tensor
            end = max(end, tensor.start + tensor.nbytes)
        if len(self._data) - end >= alignment:  # a last tensor may be padded
            raise self._damaged(f"{len(self._data) - end} bytes follow its last tensor")
        return metadata, tensors

    def _tensor_info(self) -> Tensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise ModelLoadError(f"{self._path}: tensor {name} is of unknown type {kind}") from None
        if 0 in shape or shape[-1] % block:
            raise self._damaged(f"tensor {name} has shape {list(shape)} in blocks of {block}")
        return Tensor(name, shape, kind, offset, math.prod(shape) // block * block_bytes)

    def _value(self, kind: int, *, nested: bool = False) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalars(kind, 1)[0].item()
        if kind != _ARRAY or nested:
            raise self._damaged(f"unknown metadata type {kind} at byte {self._at}")
        item, count = self._number("<I"), self._number("<Q")
        if item == _STRING:
            return self._strings(self._checked(count, 8, "strings", _MOST_STRINGS))
        if item in _SCALARS:
            return self._scalars(item, count)
        count = self._checked(count, 8, "items", _MOST_ENTRIES)
        return [self._value(item, nested=True) for _ in range(count)]

    def _scalars(self, kind: int, count: int) -> npt.NDArray[Any]:
        dtype = np.dtype(_SCALARS[kind])
        raw = self._take(self._checked(count, dtype.itemsize, "numbers") * dtype.itemsize)
        return np.frombuffer(raw, dtype)

    def _strings(self, count: int) -> list[str]:
        """`count` strings, without a call of `_string` for each: a vocabulary has over 250,000."""
        data, at, size = self._data, self._at, len(self._data)
        length_at = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0] if start <= size else size + 1
            if at > size:
                self._take(at - self._at)  # raises
            strings.append(data[start:at].decode("utf-8", errors="replace"))
        self._at = at
        return strings

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", errors="replace")

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _checked(self, count: int, least_bytes: int, what: str, most: int | None = None) -> int:
        """Return `count` if that many items of at least `least_bytes` can still follow."""
        if count * least_bytes > len(self._data) - self._at:
            raise self._damaged(
                f"{count} {what} announced at byte {self._at}, more than fit; {INCOMPLETE}"
            )
        if most is not None and count > most:
            raise self._damaged(f"{count} {what} at byte {self._at}, more than {most}")
        return count

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise self._damaged(
                f"ends within its header: {count} bytes wanted at {self._at}; {INCOMPLETE}"
            )
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _damaged(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._path}: damaged GGUF file: {what}")
