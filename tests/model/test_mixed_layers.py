"""Layers of different sizes, some of which rotate in part or use another's keys and values.

No model that is served is made of such layers yet. The equations are written down once more, in
float64 and over the whole text at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.model.config import GemmaConfig, LayerConfig
from testing.oracle.gemma import gelu, rms_norm, visible

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]
WIDTH, VOCAB, LENGTH, TEXT = 32, 64, 32, 21
NARROW = LayerConfig(heads=4, kv_heads=2, head_dim=8, hidden=48, window=6)
WIDE = LayerConfig(heads=2, kv_heads=1, head_dim=16, hidden=80, rope_base=1e6, rope_share=0.25)
CONFIG = GemmaConfig(
    name="mixed",
    width=WIDTH,
    vocab=VOCAB,
    context_length=LENGTH,
    query_scale=1.0,
    layers=(
        NARROW,
        WIDE,
        LayerConfig(heads=4, kv_heads=2, head_dim=8, hidden=48, window=6, kv_layer=0),
        LayerConfig(2, 1, 16, 80, rope_base=1e6, rope_share=0.25, kv_layer=1),
    ),
    qk_norm=True,
    post_norms=True,
)


def random_leaves() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return {
        path: (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
        for path, shape in CONFIG.leaf_shapes.items()
    }


def rotated(x: Array, layer: LayerConfig) -> Array:
    """x [T, N, H]: pairs (i, i + H/2) as complex numbers, of which the first few turn."""
    half = x.shape[-1] // 2
    index = np.arange(half)
    speed = np.where(index < layer.rope_share * half, layer.rope_base ** (-index / half), 0.0)
    turn = np.exp(1j * np.arange(len(x))[:, None, None] * speed / layer.rope_factor)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def expected_logits(leaves: dict[str, Any], ids: list[int]) -> Array:
    """[T, V]"""

    def leaf(path: str) -> Array:
        return np.asarray(leaves[path], np.float64)

    def norm(path: str, x: Array) -> Array:
        return rms_norm(x, leaf(f"{path}/scale") - 1, CONFIG.norm_eps)

    table = leaf("embedder/embedding")
    x = table[ids] * WIDTH**0.5
    cached: dict[int, tuple[Array, Array]] = {}
    for index, layer in enumerate(CONFIG.layers):
        at, h, n, k = f"layer_{index}", layer.head_dim, layer.heads, layer.kv_heads
        y = norm(f"{at}/pre_attention_norm", x)
        heads = (y @ leaf(f"{at}/attention/qkv/kernel").T).reshape(len(ids), -1, h)
        q = rotated(norm(f"{at}/attention/query_norm", heads[:, :n]), layer)
        if layer.kv_layer is None:
            keys = norm(f"{at}/attention/key_norm", heads[:, n : n + k])
            cached[index] = rotated(keys, layer), heads[:, n + k :]
        else:
            assert heads.shape[1] == n
        keys, values = cached[index if layer.kv_layer is None else layer.kv_layer]
        of_query = np.arange(n) // (n // k)
        scores = np.einsum("tnh,snh->nts", q, keys[:, of_query]) * CONFIG.query_scale
        scores = np.where(visible(len(ids), layer.window), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nts,snh->tnh", shares, values[:, of_query]).reshape(len(ids), -1)
        y = mixed @ leaf(f"{at}/attention/output/kernel").T
        x = x + norm(f"{at}/post_attention_norm", y)
        y = norm(f"{at}/pre_feed_forward_norm", x)
        gate, up = np.split(y @ leaf(f"{at}/feed_forward/gate_up/kernel").T, 2, axis=-1)
        y = (gelu(gate) * up) @ leaf(f"{at}/feed_forward/down/kernel").T
        x = x + norm(f"{at}/post_feed_forward_norm", y)
    return norm("final_norm", x) @ table.T


@pytest.mark.parametrize("block", [8, LENGTH], ids=["in blocks", "the whole cache"])
def test_a_text_read_and_then_continued_has_the_logits_of_the_equations(block: int) -> None:
    import jax
    from flax.traverse_util import unflatten_dict

    from gemma_server.model.cache import empty_cache
    from gemma_server.model.numerics import Numerics
    from gemma_server.model.transformer import Transformer

    leaves = random_leaves()
    ids = np.random.default_rng(4).integers(0, VOCAB, TEXT).tolist()
    model: Any = Transformer(CONFIG, Numerics(np.dtype("float32"), block))
    variables = jax.device_put({"params": unflatten_dict(leaves, sep="/")})

    @jax.jit
    def forward(tokens: Any, positions: Any, cache: Any) -> Any:
        hidden, cache = model.apply(variables, tokens, positions, cache, np.array([1]))
        return model.apply(variables, hidden[0], method="logits"), cache

    cache = empty_cache(CONFIG, 2, LENGTH, np.dtype("float32"))
    assert [layer.k.shape for layer in cache] == [(2, 2, LENGTH, 8), (2, 1, LENGTH, 16)]
    found = []
    for start, stop in ((0, 13), (13, TEXT - 1), (TEXT - 1, TEXT)):
        tokens = np.array([ids[start:stop]], np.int32)
        logits, cache = forward(tokens, np.arange(start, stop, dtype=np.int32)[None], cache)
        found.append(np.asarray(logits))
    np.testing.assert_allclose(np.concatenate(found), expected_logits(leaves, ids), atol=2e-4)


def test_the_modules_declare_the_leaves_of_the_configuration() -> None:
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from gemma_server.model.transformer import abstract_params

    declared = flatten_dict(abstract_params(CONFIG, jnp.float32), sep="/")
    assert CONFIG.leaf_shapes == {path: leaf.shape for path, leaf in declared.items()}
    assert CONFIG.cached_numbers_per_token == 2 * 2 * 8 + 2 * 1 * 16


@pytest.mark.parametrize("kv_layer", [1, 2, 7, -1])
def test_keys_and_values_come_from_an_earlier_layer_that_has_them(kv_layer: int) -> None:
    layers = (NARROW, LayerConfig(4, 2, 8, 48, kv_layer=kv_layer), NARROW)
    with pytest.raises(ValueError, match=f"keys and values of layer {kv_layer}"):
        GemmaConfig("x", 8, 8, 8, 1.0, layers)
