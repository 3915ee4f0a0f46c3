"""A checkpoint's weights, in the form and place that programs take them."""

from typing import TYPE_CHECKING, Any

from gemma_server.model.config import stays_float32
from gemma_server.serving.checkpoint import Checkpoint
from gemma_server.weights.arrays import Array
from gemma_server.weights.blocks import Packed
from gemma_server.weights.source import OWN_TABLE, Progress, load_leaves, open_table
from gemma_server.weights.stored_table import Units

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from gemma_server.model.transformer import Params


def put_on_device(checkpoint: Checkpoint, dtype: "DTypeLike", progress: Progress) -> "Params":
    """The parameter tree on the device. The host holds only one leaf at a time."""
    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict

    # From the configuration: tracing the model for the shapes takes a third of a second.
    wanted = {
        path: jax.ShapeDtypeStruct(shape, np.float32 if stays_float32(path) else dtype)
        for path, shape in checkpoint.config.leaf_shapes.items()
    }
    leaves: dict[str, Any] = {}
    if (table := checkpoint.weights.own_table) is not None:
        units = open_table(checkpoint.weights, table)
        leaves[OWN_TABLE] = _table_on_device(units, table.layout.kind, wanted.pop(OWN_TABLE).shape)
    for path, loaded in load_leaves(checkpoint.weights, wanted, progress):
        on_device = _on_device(loaded, checkpoint.config.leaf_shapes[path])
        leaves[path] = jax.block_until_ready(on_device)
    params: Params = unflatten_dict(leaves, sep="/")
    return params


def _table_on_device(table: Units, kind: str, shape: tuple[int, ...]) -> Any:
    """A table as it is stored; on a CPU one that is mapped from its file stays there."""
    import jax
    import numpy as np

    from gemma_server.model.stored_rows import StoredRows

    units, first = jax.device_put((table.units, np.int32(table.first)), may_alias=True)
    return jax.block_until_ready(StoredRows(units, first, kind, shape[1]))


def _on_device(loaded: Array | Packed, shape: tuple[int, ...]) -> Any:
    """A leaf in the form that the programs take."""
    import jax

    from gemma_server.model.quantized import Quantized

    if isinstance(loaded, Packed):
        values, scales = jax.device_put(tuple(loaded), may_alias=True)
        return Quantized(values, scales, (shape[0], shape[1]))
    return jax.device_put(loaded, may_alias=True)
