"""The arrays of an Orbax directory, read with tensorstore and without jax.

Orbax keeps each leaf as a Zarr array, named by its path joined with dots, in one OCDBT database
(`manifest.ocdbt`) or, in older checkpoints, in a directory each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore as ts

from gemma_server.errors import ModelLoadError

_DRIVERS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}
_FLOATS = ("float32", "float16", "bfloat16")
# Weights hardly compress; a header that promises more than this for its bytes is lying.
_MOST_COMPRESSION = 64


def open_arrays(path: Path) -> dict[str, ts.TensorStore]:
    """Every array in an Orbax directory, unread, by its path joined with slashes.

    Raises:
        ModelLoadError: the directory is no Orbax checkpoint, or a damaged one.
    """
    try:
        return _open(path)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelLoadError(
            f"{path}: not a readable Orbax checkpoint: {reason[0][:300]}"
        ) from None


def is_orbax(path: Path) -> bool:
    """Whether the directory looks like one that Orbax wrote."""
    written = any((path / name).is_file() for name in ("manifest.ocdbt", "_METADATA"))
    return written or any(path.glob("*/.zarray"))


def refuse_other_dtypes(path: Path, arrays: Mapping[str, ts.TensorStore]) -> None:
    """Say which of a model's arrays, if any, is no plain float.

    Raises:
        ModelLoadError: one is not.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _FLOATS:
            raise ModelLoadError(
                f"{path}: {name} is stored as {array.dtype.name}; "
                f"only {', '.join(_FLOATS)} are supported, no quantised weights"
            )


def _open(path: Path) -> dict[str, ts.TensorStore]:
    files: dict[str, Any] = {"driver": "file", "path": f"{path.absolute()}/"}
    base = {"driver": "ocdbt", "base": files} if (path / "manifest.ocdbt").is_file() else files
    store = ts.KvStore.open(base).result()
    opening = {}
    for key in store.list().result():
        for ending, driver in _DRIVERS.items():
            name = key.decode().removesuffix(ending)
            if name != key.decode():
                kvstore = {**base, "path": f"{base.get('path', '')}{name}/"}
                # A chunk that is not there is an error, and not full of zeros.
                spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
                opening[name.replace(".", "/")] = ts.open(spec, open=True, read=True)
    arrays = {name: future.result() for name, future in opening.items()}
    _check_sizes(path, arrays)
    return arrays


def _check_sizes(path: Path, arrays: Mapping[str, ts.TensorStore]) -> None:
    on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    promised = sum(array.size * array.dtype.numpy_dtype.itemsize for array in arrays.values())
    if promised > on_disk * _MOST_COMPRESSION:
        largest = max(arrays, key=lambda name: arrays[name].size)
        raise ModelLoadError(
            f"{path}: its arrays would have {promised} bytes ({largest} "
            f"{list(arrays[largest].shape)}), but its files have {on_disk}: it is damaged"
        )
