"""What every checkpoint format offers, and the one loop that turns it into the tree."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig


class Leaf(Protocol):
    """What the abstract tree says of one leaf."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> npt.DTypeLike: ...


class WeightSource(Protocol):
    """An opened checkpoint: its architecture, and its tensors under the runner's names.

    `read` takes a leaf's path such as `layer_3/attention/qkv/kernel` and returns it fused and
    two-dimensional, [out, in], whatever the file's own layout; it raises KeyError for a path that
    the checkpoint has nothing for.
    """

    path: Path
    config: GemmaConfig

    def read(self, leaf: str) -> npt.NDArray[np.generic]: ...


Progress = Callable[[float], None]  # called with the share done, 0 to 1


def load_leaves(
    source: WeightSource, abstract: Mapping[str, Leaf], progress: Progress
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield every leaf of the flat abstract tree, checked and in its dtype, one at a time.

    Raises:
        ModelLoadError: a tensor is missing or has another shape; the text names it.
    """
    total = sum(int(np.prod(leaf.shape)) for leaf in abstract.values())
    done = 0
    for path, leaf in abstract.items():
        try:
            array = source.read(path)
        except KeyError as error:
            raise ModelLoadError(f"{source.path}: no tensor {error} (for {path})") from None
        except (ValueError, NotImplementedError) as error:
            raise ModelLoadError(f"{source.path}: {path} cannot be read: {error}") from None
        if array.shape != tuple(leaf.shape):
            raise ModelLoadError(
                f"{source.path}: {path} has shape {list(array.shape)}, "
                f"but {source.config.name} needs {list(leaf.shape)}"
            )
        yield path, np.ascontiguousarray(array.astype(leaf.dtype, copy=False))
        done += array.size
        progress(done / total)
