"""The embeddings of a Gemma that looks both ways, from the equations, in NumPy float64: the mean of
what leaves the final norm, through dense layers, divided by its length."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from testing.oracle.gemma import Array


def pooled(hidden: Array, dense: Sequence[NDArray[np.float32]]) -> Array:
    """What leaves the final norm for a text [T, D] -> its embedding [D'], by layers [out, in]."""
    x = hidden.mean(axis=0)
    for matrix in dense:
        x = matrix.astype(np.float64) @ x
    out: Array = x / np.linalg.norm(x)
    return out
