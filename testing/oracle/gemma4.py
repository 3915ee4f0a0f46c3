"""Gemma 4 (text) written from the equations, in NumPy float64, like the older ones in gemma.py.

One sequence at a time, no cache, every position recomputed. Weights have the names and layouts of
huggingface/transformers (`models/gemma4/modeling_gemma4.py`), matrices [out, in].

Letters in shapes: T positions, D width, N query heads, K key/value heads, H head dimension, P width
of a layer's own embedding, E experts, M an expert's hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from testing.oracle.gemma import Array, gelu, softcap, visible

Weights: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class OracleConfig:
    """Everything that tells one Gemma 4 from another."""

    layers: int
    width: int  # D
    heads: int  # N
    kv_heads: int  # K of local layers
    global_kv_heads: int
    head_dim: int  # H of local layers
    global_head_dim: int
    hidden: int
    vocab: int
    window: int
    local: tuple[bool, ...]  # of each layer
    sharing: int = 0  # last layers, which use an earlier one's keys and values
    sharing_hidden: int = 0
    per_layer: int = 0  # P
    keys_are_values: bool = False  # in global layers
    experts: int = 0  # E
    chosen: int = 0
    expert_hidden: int = 0  # M
    softcap: float = 6.0  # smaller than the real 30, since these logits are smaller too
    eps: float = 1e-6
    per_layer_table: bool = True  # else each layer's own embedding is projected alone
    rope_share: float = 0.25  # of a global head's pairs, those that turn
    both_ways: bool = False  # a token sees those behind it too

    def head_dim_of(self, layer: int) -> int:
        """H"""
        return self.head_dim if self.local[layer] else self.global_head_dim

    def kv_heads_of(self, layer: int) -> int:
        """K"""
        return self.kv_heads if self.local[layer] else self.global_kv_heads

    def hidden_of(self, layer: int) -> int:
        """The feed-forward's hidden width."""
        return self.sharing_hidden if self.shares(layer) else self.hidden

    def shares(self, layer: int) -> bool:
        """Whether it uses an earlier layer's keys and values."""
        return layer >= self.layers - self.sharing


PRESETS: dict[str, OracleConfig] = {
    # E2B's kind: embeddings per layer, shared keys and values, wide feed-forward where they are.
    "gemma4-e": OracleConfig(
        layers=10, width=64, heads=4, kv_heads=1, global_kv_heads=1, head_dim=16,
        global_head_dim=32, hidden=96, vocab=307, window=8,
        local=((True,) * 4 + (False,)) * 2, sharing=5, sharing_hidden=192, per_layer=8,
    ),
    # 31B's: global layers whose keys are their values.
    "gemma4-kv": OracleConfig(
        layers=6, width=48, heads=4, kv_heads=2, global_kv_heads=1, head_dim=16,
        global_head_dim=32, hidden=96, vocab=307, window=8, local=(True,) * 5 + (False,),
        keys_are_values=True,
    ),
    # 26B-A4B's: experts beside the dense layer.
    "gemma4-moe": OracleConfig(
        layers=6, width=48, heads=4, kv_heads=2, global_kv_heads=2, head_dim=16,
        global_head_dim=32, hidden=64, vocab=307, window=8, local=(True,) * 5 + (False,),
        keys_are_values=True, experts=8, chosen=2, expert_hidden=24,
    ),
}  # fmt: skip
# Where nothing is chosen, a rounding changes no choice: for comparisons of unlike roundings.
PRESETS["gemma4-all-experts"] = replace(PRESETS["gemma4-moe"], experts=2)


def random_weights(config: OracleConfig, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Float32 weights under which activations are O(1) and no norm or scalar is near 1."""
    c, weights = config, dict[str, NDArray[np.float32]]()

    def matrix(name: str, shape: tuple[int, ...], gain: float = 1.0) -> None:
        values = rng.standard_normal(shape) * (gain / shape[-1] ** 0.5)
        weights[name] = values.astype(np.float32)

    def numbers(name: str, size: int, low: float, high: float) -> None:
        weights[name] = rng.uniform(low, high, size).astype(np.float32)

    def norm(name: str, size: int) -> None:
        numbers(f"{name}.weight", size, 1.2, 2.4)

    matrix("embed_tokens.weight", (c.vocab, c.width), 0.5)
    if c.per_layer:
        of_all = c.layers * c.per_layer
        if c.per_layer_table:
            gain = (of_all / c.per_layer) ** 0.5
            matrix("embed_tokens_per_layer.weight", (c.vocab, of_all), gain)
        matrix("per_layer_model_projection.weight", (of_all, c.width), c.width**0.5)
        norm("per_layer_projection_norm", c.per_layer)
    for i in range(c.layers):
        at, h, n, k = f"layers.{i}", c.head_dim_of(i), c.heads, c.kv_heads_of(i)
        matrix(f"{at}.self_attn.q_proj.weight", (n * h, c.width))
        # Queries are not scaled otherwise: larger ones would attend to a single key.
        numbers(f"{at}.self_attn.q_norm.weight", h, 0.1, 0.4)
        if not c.shares(i):
            matrix(f"{at}.self_attn.k_proj.weight", (k * h, c.width))
            norm(f"{at}.self_attn.k_norm", h)
            if c.local[i] or not c.keys_are_values:
                matrix(f"{at}.self_attn.v_proj.weight", (k * h, c.width))
        matrix(f"{at}.self_attn.o_proj.weight", (c.width, n * h), 1.5)
        matrix(f"{at}.mlp.gate_proj.weight", (c.hidden_of(i), c.width))
        matrix(f"{at}.mlp.up_proj.weight", (c.hidden_of(i), c.width))
        matrix(f"{at}.mlp.down_proj.weight", (c.width, c.hidden_of(i)))
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            norm(f"{at}.{name}_layernorm", c.width)
        if c.per_layer:
            matrix(f"{at}.per_layer_input_gate.weight", (c.per_layer, c.width))
            matrix(f"{at}.per_layer_projection.weight", (c.width, c.per_layer))
            norm(f"{at}.post_per_layer_input_norm", c.width)
        if c.experts:
            for name in ("pre_feedforward", "post_feedforward"):
                norm(f"{at}.{name}_layernorm_2", c.width)
            norm(f"{at}.post_feedforward_layernorm_1", c.width)
            matrix(f"{at}.router.proj.weight", (c.experts, c.width), c.width**0.5)
            numbers(f"{at}.router.scale", c.width, 0.5, 1.5)
            numbers(f"{at}.router.per_expert_scale", c.experts, 0.5, 1.5)
            m = c.expert_hidden
            matrix(f"{at}.experts.gate_up_proj", (c.experts, 2 * m, c.width))
            matrix(f"{at}.experts.down_proj", (c.experts, c.width, m))
        numbers(f"{at}.layer_scalar", 1, 0.6, 1.3)
    numbers("norm.weight", c.width, 4.0, 7.0)
    return weights


def logits(config: OracleConfig, weights: Weights, token_ids: Sequence[int]) -> Array:
    """The logits [T, V] of a pass over the whole sequence; position = index."""
    table = np.asarray(weights["embed_tokens.weight"]).astype(np.float64)
    return softcap(hidden(config, weights, token_ids) @ table.T, config.softcap)


def hidden(config: OracleConfig, weights: Weights, token_ids: Sequence[int]) -> Array:
    """What leaves the final norm, [T, D]."""
    model = _Pass(config, weights, np.asarray(token_ids, np.int64))
    x = model.leaf("embed_tokens.weight")[model.ids] * config.width**0.5
    own = model.per_layer(x)
    for i in range(config.layers):
        x = model.block(i, x, None if own is None else own[:, i])
    return model.norm("norm.weight", x)


def greedy(config: OracleConfig, weights: Weights, prompt: Sequence[int], steps: int) -> list[int]:
    """The `steps` most likely next tokens after the prompt; the lowest id wins a tie."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(np.argmax(logits(config, weights, ids)[-1])))
    return ids[len(prompt) :]


class _Pass:
    """One pass over a text, with the keys and values of the layers so far."""

    def __init__(self, config: OracleConfig, weights: Weights, ids: NDArray[np.int64]) -> None:
        self._config, self._weights, self.ids = config, weights, ids
        self._cached: dict[bool, tuple[Array, Array]] = {}  # of local layers, and of global ones

    def leaf(self, name: str) -> Array:
        """One weight in float64."""
        return np.asarray(self._weights[name]).astype(np.float64)

    def norm(self, name: str | None, x: Array) -> Array:
        """x / rms(x), times the weight if there is one."""
        x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self._config.eps)
        return x if name is None else x * self.leaf(name)

    def per_layer(self, x: Array) -> Array | None:
        """What each layer reads beside its input: [T, D] -> [T, L, P]."""
        c = self._config
        if not c.per_layer:
            return None
        shape = (len(x), c.layers, c.per_layer)
        projected = x @ self.leaf("per_layer_model_projection.weight").T / c.width**0.5
        context = self.norm("per_layer_projection_norm.weight", projected.reshape(shape))
        if not c.per_layer_table:
            return context
        own = self.leaf("embed_tokens_per_layer.weight")[self.ids].reshape(shape)
        both: Array = (context + own * c.per_layer**0.5) / 2**0.5
        return both

    def block(self, i: int, x: Array, own: Array | None) -> Array:
        """[T, D] -> [T, D]"""
        at = f"layers.{i}"
        y = self.attention(i, self.norm(f"{at}.input_layernorm.weight", x))
        x = x + self.norm(f"{at}.post_attention_layernorm.weight", y)
        y = self.norm(f"{at}.pre_feedforward_layernorm.weight", x)
        gate = gelu(y @ self.leaf(f"{at}.mlp.gate_proj.weight").T)
        y = gate * (y @ self.leaf(f"{at}.mlp.up_proj.weight").T)
        y = y @ self.leaf(f"{at}.mlp.down_proj.weight").T
        if self._config.experts:
            y = self.norm(f"{at}.post_feedforward_layernorm_1.weight", y) + self.norm(
                f"{at}.post_feedforward_layernorm_2.weight", self.experts(at, x)
            )
        x = x + self.norm(f"{at}.post_feedforward_layernorm.weight", y)
        if own is not None:
            gate = gelu(x @ self.leaf(f"{at}.per_layer_input_gate.weight").T)
            y = (gate * own) @ self.leaf(f"{at}.per_layer_projection.weight").T
            x = x + self.norm(f"{at}.post_per_layer_input_norm.weight", y)
        return x * self.leaf(f"{at}.layer_scalar")

    def attention(self, i: int, x: Array) -> Array:
        """Causal grouped-query attention, [T, D] -> [T, D]."""
        c, at = self._config, f"layers.{i}.self_attn"
        h, n, k = c.head_dim_of(i), c.heads, c.kv_heads_of(i)
        q = (x @ self.leaf(f"{at}.q_proj.weight").T).reshape(-1, n, h)
        q = rotated(self.norm(f"{at}.q_norm.weight", q), c.local[i], c.rope_share)
        if not c.shares(i):
            raw = keys = (x @ self.leaf(f"{at}.k_proj.weight").T).reshape(-1, k, h)
            if f"{at}.v_proj.weight" in self._weights:
                raw = (x @ self.leaf(f"{at}.v_proj.weight").T).reshape(-1, k, h)
            keys = rotated(self.norm(f"{at}.k_norm.weight", keys), c.local[i], c.rope_share)
            self._cached[c.local[i]] = keys, self.norm(None, raw)
        keys, values = self._cached[c.local[i]]
        of_query = np.arange(n) // (n // k)
        scores = np.einsum("tnh,snh->nts", q, keys[:, of_query])
        seen = visible(len(x), c.window if c.local[i] else None, both_ways=c.both_ways)
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = shares / shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nts,snh->tnh", shares, values[:, of_query]).reshape(len(x), -1)
        out: Array = mixed @ self.leaf(f"{at}.o_proj.weight").T
        return out

    def experts(self, at: str, x: Array) -> Array:
        """The mixture's output for the stream x itself: [T, D] -> [T, D]."""
        c = self._config
        routed = self.norm(None, x) * self.leaf(f"{at}.router.scale") / c.width**0.5
        scores = routed @ self.leaf(f"{at}.router.proj.weight").T
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = self.norm(f"{at}.pre_feedforward_layernorm_2.weight", x)
        gate_up = self.leaf(f"{at}.experts.gate_up_proj")
        down = self.leaf(f"{at}.experts.down_proj")
        scales = self.leaf(f"{at}.router.per_expert_scale")
        out = np.zeros_like(x)
        for t, share in enumerate(shares):
            best = np.argsort(-share, kind="stable")[: c.chosen]
            for expert in best:
                gate, up = np.split(gate_up[expert] @ y[t], 2)
                answer = down[expert] @ (gelu(gate) * up)
                out[t] += answer * scales[expert] * share[expert] / share[best].sum()
        return out


def rotated(x: Array, local: bool, share: float) -> Array:
    """x [T, N, H]: pairs (i, i + H/2) as complex numbers. In global layers the first `share` of
    them turns, at the speed that these pairs have among all."""
    half = x.shape[-1] // 2
    index = np.arange(half)
    base = 10_000.0 if local else 1_000_000.0
    speed = base ** (-index / half)
    if not local:
        speed = np.where(index < share * half, speed, 0.0)
    turn = np.exp(1j * np.arange(len(x))[:, None, None] * speed)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)
