"""The arrays of an Orbax directory, read with tensorstore and without jax.

Orbax keeps each leaf as a Zarr array, named by its path joined with dots, in one OCDBT database
(`manifest.ocdbt`) or, in older checkpoints, in a directory each.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore as ts

from gemma_server.errors import ModelLoadError
from gemma_server.weights.files import INCOMPLETE

_DRIVERS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}
_FLOATS = ("float32", "float16", "bfloat16")
# Weights hardly compress: a header that claims a higher ratio is false.
_MOST_COMPRESSION = 64
_UNFINISHED = ".orbax-checkpoint-tmp"
_CACHE_OVERHEAD_BYTES = 64 << 20  # for what tensorstore's cache counts beside a chunk
_STACK = "stacked_layers/"


def open_arrays(path: Path) -> dict[str, ts.TensorStore]:
    """Every array in an Orbax directory, unread, by its path joined with slashes.

    Raises:
        ModelLoadError: the directory is no Orbax checkpoint, or a damaged one.
    """
    if _UNFINISHED in path.name:
        raise ModelLoadError(f"{path}: Orbax was interrupted while it wrote this")
    try:
        return _open(path.resolve())  # tensorstore takes no ".." in a path
    except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelLoadError(
            f"{path}: not a readable Orbax checkpoint: {reason[0][:300]}; {INCOMPLETE}"
        ) from None


def is_orbax(path: Path) -> bool:
    """Whether the directory looks like one that Orbax wrote."""
    written = any((path / name).is_file() for name in ("manifest.ocdbt", "_METADATA"))
    return written or any(any(path.glob(f"*{ending}")) for ending in _DRIVERS)


def refuse_other_dtypes(path: Path, arrays: Mapping[str, ts.TensorStore]) -> None:
    """Refuse arrays that do not hold plain floats.

    Raises:
        ModelLoadError: one of them does not; the text names it.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _FLOATS:
            raise ModelLoadError(
                f"{path}: {name} is stored as {array.dtype.name}; "
                f"only {', '.join(_FLOATS)} are supported, no quantized weights"
            )


def nbytes(array: ts.TensorStore) -> int:
    """Bytes of the array's values."""
    size: int = array.size * array.dtype.numpy_dtype.itemsize
    return size


def _open(path: Path) -> dict[str, ts.TensorStore]:
    on_disk = _regular_bytes(path)
    files: dict[str, Any] = {"driver": "file", "path": f"{path}/"}
    base = {"driver": "ocdbt", "base": files} if (path / "manifest.ocdbt").is_file() else files
    store = ts.KvStore.open(base).result()
    opening = {}
    for key in store.list().result():
        for ending, driver in _DRIVERS.items():
            name = key.decode().removesuffix(ending)
            if name != key.decode():
                kvstore = {**base, "path": f"{base.get('path', '')}{name}/"}
                opening[name.replace(".", "/")] = {
                    "driver": driver,
                    "kvstore": kvstore,
                    # A missing chunk is an error, not a chunk of zeros.
                    "fill_missing_data_reads": False,
                }
    arrays = _open_all(opening, ts.Context())
    _check_sizes(path, arrays, on_disk)
    if stacks := [nbytes(array) for name, array in arrays.items() if _STACK in name]:
        # Each layer is a slice of a stack that was written as one chunk. The last stack stays
        # decoded while its layers are copied; `load_leaves` asks for these one after another.
        specs = {name: {**spec, "recheck_cached_data": "open"} for name, spec in opening.items()}
        pool = {"total_bytes_limit": max(stacks) + _CACHE_OVERHEAD_BYTES}
        arrays = _open_all(specs, ts.Context({"cache_pool": pool}))
    return arrays


def _open_all(
    specs: Mapping[str, dict[str, Any]], context: ts.Context
) -> dict[str, ts.TensorStore]:
    opening = {
        name: ts.open(spec, open=True, read=True, context=context) for name, spec in specs.items()
    }
    return {name: future.result() for name, future in opening.items()}


def _regular_bytes(path: Path) -> int:
    """The size of all files, which must be regular: reading a pipe would block."""
    total = 0
    for file in path.rglob("*"):
        found = file.stat()
        if not stat.S_ISDIR(found.st_mode):
            if not stat.S_ISREG(found.st_mode):
                raise ModelLoadError(f"{file}: not a regular file")
            total += found.st_size
    return total


def _check_sizes(path: Path, arrays: Mapping[str, ts.TensorStore], on_disk: int) -> None:
    promised = sum(map(nbytes, arrays.values()))
    if promised > on_disk * _MOST_COMPRESSION:
        largest = max(arrays, key=lambda name: arrays[name].size)
        raise ModelLoadError(
            f"{path}: its arrays would have {promised} bytes ({largest} "
            f"{list(arrays[largest].shape)}), but its files have {on_disk}: it is damaged"
        )
    for name, array in arrays.items():
        chunk = array.chunk_layout.read_chunk.shape or ()
        if any((side or 1) > max(1, size) for side, size in zip(chunk, array.shape, strict=False)):
            raise ModelLoadError(
                f"{path}: damaged: {name} {list(array.shape)} is cut in chunks of {list(chunk)}"
            )
