"""Arrays that jax takes over without a copy."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array that begins on a cache line: on a CPU jax uses such memory without a copy."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    spare = np.empty(nbytes + 64, np.uint8)
    start = -spare.ctypes.data % 64
    return spare[start : start + nbytes].view(dtype).reshape(shape)
