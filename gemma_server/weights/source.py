"""The interface of every checkpoint format, and the loop that reads one into the tree."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.arrays import Array, aligned_empty
from gemma_server.weights.blocks import Blocks, Packed, pack, quantize
from gemma_server.weights.files import INCOMPLETE
from gemma_server.weights.sampling_defaults import SamplingDefaults
from gemma_server.weights.stored_table import StoredTable, Units

EMBEDDING = "embedder/embedding"
OWN_TABLE = "embedder/per_layer_embedding"
TABLES = (EMBEDDING, OWN_TABLE)  # a row for each token, and maybe a few more
_NAMED_AT_MOST = 4  # tensors in one error message


class Leaf(Protocol):
    """The shape and dtype of one leaf of the abstract tree."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> npt.DTypeLike: ...


@dataclass(frozen=True)
class Rows:
    """The rows that one stored tensor gives to a leaf.

    `copy` writes them into an array of `shape` and any float dtype, straight from the file; into
    an array with fewer rows it writes the first of them. `copy_blocks` writes 8-bit blocks; it is
    None unless these hold the stored type exactly.
    """

    tensor: str  # its name in the file
    shape: tuple[int, ...]
    copy: Callable[[Array], None]
    copy_blocks: Callable[[Blocks], None] | None = None


def plus_one(part: Rows) -> Rows:
    """The same rows, each number greater by 1: how Flax and transformers store the norms of Gemma 1
    to 3, whose scale was meant to begin at 0."""

    def copy(out: Array) -> None:
        part.copy(out)
        out += 1

    return replace(part, copy=copy)


class WeightSource(Protocol):
    """An opened checkpoint: its architecture, and its tensors under the runner's names.

    `rows` takes a leaf's path such as `layer_3/attention/qkv/kernel` and says which tensors its
    rows come from, in order, turned to [out, in] whatever the file's own layout; it raises
    KeyError for a path that the checkpoint has nothing for. Nothing is read before `copy`.
    """

    path: Path
    config: GemmaConfig
    format: str  # for a person
    stop_ids: frozenset[int]  # what the checkpoint itself says ends an answer
    suppressed_ids: frozenset[int]  # and what is never sampled
    sampling: SamplingDefaults
    chat_template: str | None  # the checkpoint's own, in Jinja's language

    @property
    def tensors(self) -> Collection[str]:
        """Names of all stored tensors that belong to the text model."""

    @property
    def stored(self) -> Mapping[str, int]:
        """Bytes of these tensors by stored type."""

    @property
    def own_table(self) -> StoredTable | None:
        """The table of each layer's own embeddings as it is stored. None if the model has none, or
        its rows are of a kind that is widened at loading."""

    def rows(self, leaf: str) -> Sequence[Rows]: ...


Progress = Callable[[int, int], None]  # called with the bytes done, and those of all leaves


def check(source: WeightSource) -> None:
    """Check that the checkpoint has every tensor of its architecture, and no other. Reads none.

    Raises:
        ModelLoadError: a tensor is missing, has another shape, or has no place in the model. To
            leave out such a bias or adapter would silently change the answers.
    """
    used = set()
    for path, shape in source.config.leaf_shapes.items():
        used |= {part.tensor for part in _rows_for(source, path, shape)}
    strays = sorted(set(source.tensors) - used)
    if strays:
        more = f" and {len(strays) - _NAMED_AT_MOST} more" if len(strays) > _NAMED_AT_MOST else ""
        raise ModelLoadError(
            f"{source.path}: {source.config.name} has no place for the tensors "
            f"{', '.join(strays[:_NAMED_AT_MOST])}{more}"
        )


def load_leaves(
    source: WeightSource, abstract: Mapping[str, Leaf], progress: Progress
) -> Iterator[tuple[str, Array | Packed]]:
    """Yield every leaf of the flat abstract tree in its dtype, one at a time.

    An int8 leaf is packed from the file's own blocks if it has such, else quantized. The
    embedding may have more rows than its leaf: tables are padded, and the padding is left out.

    Raises:
        ModelLoadError: a tensor is missing, has another shape, or cannot be read.
    """
    plan = {path: _rows_for(source, path, tuple(leaf.shape)) for path, leaf in abstract.items()}
    # The largest first, while memory is free; leaves from one stored array follow each other.
    paths = sorted(plan, key=lambda path: (-_nbytes(abstract[path]), plan[path][0].tensor))
    total = sum(_nbytes(leaf) for leaf in abstract.values())
    done = 0
    for path in paths:
        leaf, parts = abstract[path], plan[path]
        out = _empty(leaf, parts)
        start = 0
        for part in parts:
            stop = min(start + part.shape[0], leaf.shape[0])
            _copy(source, part, out[start:stop])
            done += _nbytes(leaf) * (stop - start) // leaf.shape[0]
            start = stop
            progress(done, total)
        yield path, _finished(out, leaf)


def open_table(source: WeightSource, table: StoredTable) -> Units:
    """Map or read the source's own table.

    Raises:
        ModelLoadError: it cannot be read.
    """
    with _reading(source, OWN_TABLE):
        return table.open()


def _rows_for(source: WeightSource, path: str, shape: tuple[int, ...]) -> Sequence[Rows]:
    """The leaf's rows, checked to make up its shape."""
    try:
        parts = source.rows(path)
    except KeyError as error:
        raise ModelLoadError(f"{source.path}: no tensor {error} (for {path})") from None
    sizes = _fused_sizes(source.config, path) or shape[:1]
    counts = tuple(part.shape[0] for part in parts)
    fits = counts in (sizes, (sum(sizes),)) or (path in TABLES and counts[0] >= shape[0])
    if not fits or any(part.shape[1:] != shape[1:] for part in parts):
        found = " and ".join(f"{part.tensor} {list(part.shape)}" for part in parts)
        wanted = " and ".join(str([size, *shape[1:]]) for size in sizes)
        raise ModelLoadError(
            f"{source.path}: {path} is made of {found}, but {source.config.name} needs {wanted}"
        )
    return parts


def _fused_sizes(config: GemmaConfig, path: str) -> tuple[int, ...]:
    """The rows of each matrix in a fused leaf; none for a leaf that is one matrix."""
    layer, _, rest = path.partition("/")
    if not layer.startswith("layer_"):
        return ()
    return config.fused_rows(int(layer.removeprefix("layer_"))).get(rest, ())


def _empty(leaf: Leaf, parts: Sequence[Rows]) -> Array | Blocks:
    """An array or blocks that the parts can be copied into."""
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
    if dtype != np.int8:
        return aligned_empty(shape, dtype)
    if any(part.copy_blocks is None for part in parts):
        return aligned_empty(shape, np.dtype(np.float32))
    return Blocks.empty(*shape)


def _finished(loaded: Array | Blocks, leaf: Leaf) -> Array | Packed:
    if isinstance(loaded, Blocks):
        return pack(loaded)
    return pack(quantize(loaded)) if np.dtype(leaf.dtype) == np.int8 else loaded


def _copy(source: WeightSource, part: Rows, out: Array | Blocks) -> None:
    with _reading(source, part.tensor):
        if isinstance(out, Blocks):
            assert part.copy_blocks is not None
            part.copy_blocks(out)
        else:
            part.copy(out)


@contextmanager
def _reading(source: WeightSource, tensor: str) -> Iterator[None]:
    """Raises ModelLoadError, which names the tensor, for what reading raises in the block."""
    try:
        yield
    except (ValueError, NotImplementedError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
        raise ModelLoadError(
            f"{source.path}: {tensor} cannot be read: {reason}; {INCOMPLETE}"
        ) from None


def _nbytes(leaf: Leaf) -> int:
    return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
