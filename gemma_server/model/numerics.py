"""How the model computes: what changes numbers and speed, but not the architecture."""

from dataclasses import dataclass

from jax.typing import DTypeLike

from gemma_server.model.stored_as import StoredAs


@dataclass(frozen=True)
class Numerics:
    """`dtype` is the weights': float32, bfloat16, or int8 for quantized ones. Attention reads the
    cache in blocks of `block` positions. `native` says that the kernels of gemma_server/native may
    be used; they must be registered, and serve 8-bit weights on a CPU. `own_table` says how the
    table of each layer's own embeddings is stored, if it is not one of the matrices in `dtype`."""

    dtype: DTypeLike
    block: int = 256
    native: bool = False
    own_table: StoredAs | None = None
