"""The native kernels of gemma_server/native as functions of arrays; they must be registered.

Each computes a row from that row alone, with the same bits whatever the rows beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np


def norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis: [..., D] f32."""
    rows = x.reshape(-1, x.shape[-1])
    call = jax.ffi.ffi_call("gemma_norm", jax.ShapeDtypeStruct(rows.shape, jnp.float32))
    out: jax.Array = call(rows, scale, epsilon=np.float32(epsilon))
    return out.reshape(x.shape)


def product(rows: jax.Array, values: jax.Array, scales: jax.Array, out: int) -> jax.Array:
    """rows [B, in] f32 times the `out` rows of a `Quantized` matrix's parts -> [B, out] f32."""
    result = jax.ShapeDtypeStruct((rows.shape[0], out), jnp.float32)
    multiplied: jax.Array = jax.ffi.ffi_call("gemma_product", result)(rows, values, scales)
    return multiplied


def masked_product(
    rows: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    out: int,
    masks: jax.Array,
    masked: jax.Array,
) -> jax.Array:
    """The product, with -inf where a row that is `masked` [B] i32 has no bit in masks [B, W] i32.

    What no row has is not computed, and its weights are not read. The rest has its bits.
    """
    result = jax.ShapeDtypeStruct((rows.shape[0], out), jnp.float32)
    call = jax.ffi.ffi_call("gemma_masked_product", result)
    multiplied: jax.Array = call(rows, values, scales, masks, masked)
    return multiplied


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """Attention of new tokens over their slots' caches, read where they lie.

    q [B, T, N, H] f32 at positions [B, T] of slots [B]; k and v [slots, K, S, H], bfloat16's bits
    -> [B, T, N, H] f32. Tokens beyond the end are padding, and give 0.
    """
    call = jax.ffi.ffi_call("gemma_attention", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    mixed: jax.Array = call(
        q,
        k,
        v,
        slots,
        positions,
        window=np.int64(window or 0),
        softcap=np.float32(softcap or 0.0),
    )
    return mixed
