"""Arrays that jax takes over without a copy, and how they are filled."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Part = TypeVar("Part")


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array that begins on a cache line: on a CPU jax uses such memory without a copy."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    spare = np.empty(nbytes + 64, np.uint8)
    start = -spare.ctypes.data % 64
    return spare[start : start + nbytes].view(dtype).reshape(shape)


def on_all_cores(work: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Do the work on each part, in threads: NumPy copies and computes without Python's lock.

    Raises:
        Exception: what `work` raises first.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, parts):
            pass
