"""Gemma 1, 2 and 3 (text) written from the equations, in NumPy float64.

This is the yardstick for the real implementation, so it favours plainness over speed: one
sequence at a time, no cache, no batching, every position recomputed on every call.

Letters in shapes: T positions (queries), S positions (keys), D width, N query heads, K key/value
heads, H head dimension, F hidden width of the feed-forward layer, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class OracleConfig:
    """Everything that tells one Gemma from another."""

    layers: int
    width: int  # D
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    hidden: int  # F
    vocab: int  # V
    query_scale: float  # multiplies the queries
    windows: tuple[int | None, ...]  # per layer: sliding window, or None for global attention
    rope_bases: tuple[float, ...]  # per layer
    rope_factors: tuple[float, ...]  # per layer: divides the angle
    attention_softcap: float | None
    final_softcap: float | None
    qk_norm: bool
    post_norms: bool
    rms_eps: float = 1e-6
    both_ways: bool = False  # a token sees those behind it too

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit together."""
        for name in ("windows", "rope_bases", "rope_factors"):
            if len(getattr(self, name)) != self.layers:
                raise ValueError(f"{name} needs one entry for each of the {self.layers} layers")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError("heads must be a multiple of kv_heads, and head_dim even")


def random_weights(
    config: OracleConfig,
    rng: np.random.Generator,
    scale: float = 1.0,
    *,
    gating_transposed: bool = True,
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Draws float32 weights in the flat Flax layout of the released checkpoints.

    At scale 1 activations are O(1), attention is far from uniform and logits spread over several
    units. `scale` multiplies every matrix but the embedding; a small one (0.02) shrinks the inputs
    of the query, key and post norms until rms_eps matters. `gating_transposed` picks the layout
    of the feed-forward input: (2, F, D) when true, (2, D, F) when false.
    """
    c, weights = config, dict[str, dict[str, NDArray[np.float32]]]()

    def matrix(
        path: str, shape: tuple[int, ...], fan_in: int, gain: float, leaf: str = "w"
    ) -> None:
        values = rng.standard_normal(shape) * (gain / fan_in**0.5)
        weights[f"transformer/{path}"] = {leaf: values.astype(np.float32)}

    def norm(path: str, size: int, low: float = 0.2, high: float = 1.4) -> None:
        # Never near zero, so that leaving out either the scale or the "1 +" shows.
        values = rng.uniform(low, high, size)
        weights[f"transformer/{path}"] = {"scale": values.astype(np.float32)}

    n, k, h, d, f = c.heads, c.kv_heads, c.head_dim, c.width, c.hidden
    # A small embedding under a large final norm: the table is tied, so a larger share of the
    # embedding in the residual stream would make every token predict itself.
    matrix("embedder", (c.vocab, d), d, 0.5, leaf="input_embedding")
    for i in range(c.layers):
        layer = f"layer_{i}"
        norm(f"{layer}/pre_attention_norm", d)
        if k == n:
            matrix(f"{layer}/attn/qkv_einsum", (3, n, d, h), d, scale)
        else:
            matrix(f"{layer}/attn/q_einsum", (n, d, h), d, scale)
            matrix(f"{layer}/attn/kv_einsum", (2, k, d, h), d, scale)
        if c.qk_norm:
            norm(f"{layer}/attn/_query_norm", h)
            norm(f"{layer}/attn/_key_norm", h)
        matrix(f"{layer}/attn/attn_vec_einsum", (n, h, d), n * h, 1.5 * scale)
        norm(f"{layer}/pre_ffw_norm", d)
        gating_shape = (2, f, d) if gating_transposed else (2, d, f)
        matrix(f"{layer}/mlp/gating_einsum", gating_shape, d, scale)
        matrix(f"{layer}/mlp/linear", (f, d), f, scale)
        if c.post_norms:
            norm(f"{layer}/post_attention_norm", d)
            norm(f"{layer}/post_ffw_norm", d)
    norm("final_norm", d, 3.0, 6.0)
    return weights


def logits(config: OracleConfig, weights: Weights, token_ids: Sequence[int]) -> Array:
    """Returns the logits [T, V] of a pass over the whole sequence; position = index."""
    table = _leaf(weights, "embedder", "input_embedding")  # [V, D]
    x = hidden(config, weights, token_ids)
    return softcap(np.einsum("td,vd->tv", x, table), config.final_softcap)


def hidden(config: OracleConfig, weights: Weights, token_ids: Sequence[int]) -> Array:
    """Returns what leaves the final norm, [T, D]."""
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.ndim != 1 or not all(0 <= t < config.vocab for t in ids):
        raise ValueError("token_ids must be one sequence of ids within the vocabulary")
    table = _leaf(weights, "embedder", "input_embedding")  # [V, D]
    x = table[ids] * np.sqrt(config.width)  # [T, D]
    for i in range(config.layers):
        x = _block(config, weights, i, x)
    return _norm(config, weights, "final_norm", x)


def greedy(config: OracleConfig, weights: Weights, prompt: Sequence[int], steps: int) -> list[int]:
    """Returns the `steps` most likely next tokens after the prompt; the lowest id wins a tie."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(np.argmax(logits(config, weights, ids)[-1])))
    return ids[len(prompt) :]


def _block(config: OracleConfig, weights: Weights, i: int, x: Array) -> Array:
    """One transformer block, [T, D] -> [T, D]."""
    layer = f"layer_{i}"
    y = attention(config, weights, i, _norm(config, weights, f"{layer}/pre_attention_norm", x))
    if config.post_norms:
        y = _norm(config, weights, f"{layer}/post_attention_norm", y)
    x = x + y
    y = feed_forward(weights, i, _norm(config, weights, f"{layer}/pre_ffw_norm", x))
    if config.post_norms:
        y = _norm(config, weights, f"{layer}/post_ffw_norm", y)
    return x + y


def attention(config: OracleConfig, weights: Weights, i: int, x: Array) -> Array:
    """Causal grouped-query self-attention of layer i, [T, D] -> [T, D]."""
    path = f"layer_{i}/attn"
    if f"transformer/{path}/qkv_einsum" in weights:
        w_q, w_k, w_v = _leaf(weights, f"{path}/qkv_einsum")  # [N, D, H] each
    else:
        w_q = _leaf(weights, f"{path}/q_einsum")  # [N, D, H]
        w_k, w_v = _leaf(weights, f"{path}/kv_einsum")  # [K, D, H] each
    q = np.einsum("td,ndh->tnh", x, w_q)
    k = np.einsum("sd,kdh->skh", x, w_k)
    v = np.einsum("sd,kdh->skh", x, w_v)
    if config.qk_norm:
        q = _norm(config, weights, f"{path}/_query_norm", q)
        k = _norm(config, weights, f"{path}/_key_norm", k)

    positions = np.arange(len(x))
    q = rope(q, positions, config.rope_bases[i], config.rope_factors[i]) * config.query_scale
    k = rope(k, positions, config.rope_bases[i], config.rope_factors[i])

    group = config.heads // config.kv_heads
    kv_head = [n // group for n in range(config.heads)]  # query head -> its key/value head
    scores = np.einsum("tnh,snh->nts", q, k[:, kv_head])
    scores = softcap(scores, config.attention_softcap)
    seen = visible(len(x), config.windows[i], both_ways=config.both_ways)
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs = scores / scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("nts,snh->tnh", probs, v[:, kv_head])
    out: Array = np.einsum("tnh,nhd->td", mixed, _leaf(weights, f"{path}/attn_vec_einsum"))
    return out


def feed_forward(weights: Weights, i: int, x: Array) -> Array:
    """GeGLU layer i, [T, D] -> [T, D]; tells the two gating layouts apart by their shape."""
    down = _leaf(weights, f"layer_{i}/mlp/linear")  # [F, D]
    gating = _leaf(weights, f"layer_{i}/mlp/gating_einsum")
    hidden, width = down.shape
    if hidden == width:
        raise ValueError("the gating layout is ambiguous when F == D")
    equation = "td,gfd->gtf" if gating.shape == (2, hidden, width) else "td,gdf->gtf"
    gate, up = np.einsum(equation, x, gating)
    out: Array = np.einsum("tf,fd->td", gelu(gate) * up, down)
    return out


def visible(length: int, window: int | None, *, both_ways: bool = False) -> NDArray[np.bool_]:
    """Mask [T, S]: which keys a query sees, at most `window` of them counting itself; or those
    less than `window` away on both sides."""
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    if both_ways:
        return abs(query - key) < (length if window is None else window)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def rope(x: Array, positions: NDArray[np.int64], base: float, factor: float) -> Array:
    """Rotates x [T, N, H] by position [T]: element i pairs with element i + H/2.

    The pair is read as one complex number and turned by position / base^(2i/H) / factor.
    """
    half = x.shape[-1] // 2
    timescale = base ** (np.arange(half) / half)
    angle = positions[:, None, None] / timescale / factor  # [T, 1, H/2]
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Divides x by its root mean square over the last axis and multiplies by 1 + scale."""
    mean_square: Array = np.mean(x**2, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * (1.0 + scale)


def softcap(x: Array, cap: float | None) -> Array:
    """Squashes x smoothly into (-cap, cap); no cap leaves it alone."""
    return x if cap is None else np.tanh(x / cap) * cap


def gelu(x: Array) -> Array:
    """GELU in its tanh approximation."""
    inner: Array = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + np.tanh(inner))


def _leaf(weights: Weights, path: str, name: str = "w") -> Array:
    """One weight, widened to float64."""
    return np.asarray(weights[f"transformer/{path}"][name]).astype(np.float64)


def _norm(config: OracleConfig, weights: Weights, path: str, x: Array) -> Array:
    """RMSNorm of x over its last axis with the scale stored at `path`."""
    return rms_norm(x, _leaf(weights, path, "scale"), config.rms_eps)


def _gemma1(kv_heads: int) -> OracleConfig:
    """Gemma 1: global attention only, no softcaps, no extra norms."""
    return OracleConfig(
        layers=3, width=48, heads=4, kv_heads=kv_heads, head_dim=16, hidden=96, vocab=307,
        query_scale=16**-0.5, windows=(None,) * 3, rope_bases=(10_000.0,) * 3,
        rope_factors=(1.0,) * 3, attention_softcap=None, final_softcap=None, qk_norm=False,
        post_norms=False,
    )  # fmt: skip


def _gemma2() -> OracleConfig:
    """Gemma 2: local and global layers in turn, softcaps, post norms, its own query scale.

    The query scale follows the 27B model: (D / N)^-0.5 rather than H^-0.5. The caps are much
    smaller than the real 50 and 30, because these logits are smaller too.
    """
    return OracleConfig(
        layers=4, width=48, heads=4, kv_heads=2, head_dim=16, hidden=96, vocab=307,
        query_scale=12**-0.5, windows=(8, None) * 2, rope_bases=(10_000.0,) * 4,
        rope_factors=(1.0,) * 4, attention_softcap=4.0, final_softcap=6.0, qk_norm=False,
        post_norms=True,
    )  # fmt: skip


def _vaultgemma() -> OracleConfig:
    """VaultGemma: Gemma 2 without norms behind the blocks. In the released model no layer is local;
    transformers' would heed what the file says of each.
    """
    return replace(_gemma2(), windows=(None, None, 8, None), post_norms=False)


def _gemma3(kv_heads: int, factor: float) -> OracleConfig:
    """Gemma 3: five local layers to one global one (cut short after eight), query and key norms."""
    is_global = [i % 6 == 5 for i in range(8)]
    return OracleConfig(
        layers=8, width=40, heads=4, kv_heads=kv_heads, head_dim=16, hidden=96, vocab=311,
        query_scale=16**-0.5, windows=tuple(None if g else 8 for g in is_global),
        rope_bases=tuple(1_000_000.0 if g else 10_000.0 for g in is_global),
        rope_factors=tuple(factor if g else 1.0 for g in is_global), attention_softcap=None,
        final_softcap=None, qk_norm=True, post_norms=True,
    )  # fmt: skip


PRESETS: dict[str, OracleConfig] = {
    "gemma1-mqa": _gemma1(kv_heads=1),
    "gemma1-mha": _gemma1(kv_heads=4),
    "gemma2": _gemma2(),
    "gemma3": _gemma3(kv_heads=2, factor=8.0),
    "gemma3-small": _gemma3(kv_heads=1, factor=1.0),
    "vaultgemma": _vaultgemma(),
}
