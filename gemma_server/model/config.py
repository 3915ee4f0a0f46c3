"""The architecture of a Gemma, layer by layer; without jax, so that weight readers may use it."""

import math
from dataclasses import dataclass

# 8-bit matrices: weights of a row that share a scale, and rows that lie side by side in memory.
# gemma_server/native/product.cc is written for these numbers.
BLOCK, GROUP = 32, 16


@dataclass(frozen=True)
class LayerConfig:
    """One layer. `window` is in tokens, the query's own included; None sees all. In a model that
    looks both ways it reaches as far to each side."""

    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    hidden: int  # F
    window: int | None = None
    rope_base: float = 10_000.0
    rope_factor: float = 1.0  # divides the angles
    rope_share: float = 1.0  # of a head's pairs of dimensions, the fastest ones, that rotate
    kv_layer: int | None = None  # the earlier layer whose keys and values it uses; None: its own
    keys_are_values: bool = False  # one matrix for both; keys are normed and rotated, values normed

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no layer could have."""
        counts = (self.heads, self.kv_heads, self.head_dim, self.hidden)
        if not all(1 <= count < 2**31 for count in counts) or (
            self.head_dim % 2 or self.heads % self.kv_heads
        ):
            raise ValueError(f"no Gemma has a layer of these sizes: {self}")
        numbers = (self.window, self.rope_base, self.rope_factor, self.rope_share)
        turns_some = 0 < self.rope_share <= 1
        if not turns_some or not all(number is None or 0 < number < 2**40 for number in numbers):
            raise ValueError(f"no Gemma has such a layer: {self}")


@dataclass(frozen=True)
class Experts:
    """A mixture of feed-forward layers beside the dense one, of which each token takes a few."""

    count: int  # E
    chosen: int  # for each token
    hidden: int  # M

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no mixture could have."""
        if not (1 <= self.chosen <= self.count < 2**16 and 1 <= self.hidden < 2**31):
            raise ValueError(f"no Gemma has such experts: {self}")


@dataclass(frozen=True)
class GemmaConfig:
    """The architecture of one model. Widths and counts use the letters of `gemma_server.model`."""

    name: str
    width: int  # D
    vocab: int  # V
    context_length: int
    query_scale: float
    layers: tuple[LayerConfig, ...]
    attention_softcap: float | None = None
    final_softcap: float | None = None
    qk_norm: bool = False
    post_norms: bool = False
    value_norm: bool = False  # without a scale
    output_scale: bool = False  # a number that multiplies what leaves a layer
    per_layer_width: int | None = None  # P, of the embeddings that each layer has of its own
    experts: Experts | None = None
    norm_eps: float = 1e-6
    suppressed: tuple[int, ...] = ()  # tokens that are never sampled
    per_layer_table: bool = True  # else each layer's own embedding is a projection alone
    bidirectional: bool = False  # tokens see those behind them too: the model embeds texts
    dense: tuple[int, ...] = ()  # widths of the layers that follow the mean of a text's tokens

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no Gemma could have."""
        if not all(0 <= token < self.vocab for token in self.suppressed):
            raise ValueError(f"suppressed: of {self.vocab} tokens none is {max(self.suppressed)}")
        counts = {"layers": len(self.layers), "width": self.width, "vocab": self.vocab}
        if self.per_layer_width is not None:
            counts["per_layer_width"] = self.per_layer_width
        counts |= {f"dense[{index}]": width for index, width in enumerate(self.dense)}
        if not all(1 <= count < 2**31 for count in counts.values()):
            raise ValueError(f"no Gemma has these sizes: {counts}")
        if not self.name.isprintable():
            raise ValueError(f"name cannot be {self.name!r}")
        numbers = {
            "context_length": self.context_length,
            "query_scale": self.query_scale,
            "attention_softcap": self.attention_softcap,
            "final_softcap": self.final_softcap,
            "norm_eps": self.norm_eps,
        }
        for name, number in numbers.items():
            if number is not None and not 0 < number < 2**40:
                raise ValueError(f"{name} cannot be {number}")
        if self.experts is not None and (self.width % GROUP or 2 * self.experts.hidden % GROUP):
            # Where one expert's rows end, 8-bit matrices begin a new group.
            raise ValueError(f"no Gemma has such experts at width {self.width}: {self.experts}")
        shares = len(self.cached_layers) < len(self.layers)
        if (self.bidirectional and shares) or (self.dense and not self.bidirectional):
            raise ValueError(f"no Gemma has both: {self.bidirectional=}, {shares=}, {self.dense=}")
        for index, layer in enumerate(self.layers):
            source = layer.kv_layer
            if source is not None and source not in self.cached_layers[:index]:
                raise ValueError(f"layer {index} cannot use the keys and values of layer {source}")

    @property
    def cached_layers(self) -> list[int]:
        """The layers that have keys and values of their own, in their order in the cache."""
        return [index for index, layer in enumerate(self.layers) if layer.kv_layer is None]

    @property
    def leaf_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every leaf of the parameter tree, by its path joined with slashes.

        The same as the Flax modules declare, for code that may not import them; a test compares
        the two.
        """
        leaves: dict[str, tuple[int, ...]] = {"embedder/embedding": (self.vocab, self.width)}
        if self.per_layer_width is not None:
            of_all = len(self.layers) * self.per_layer_width
            if self.per_layer_table:
                leaves["embedder/per_layer_embedding"] = (self.vocab, of_all)
            leaves |= {
                "embedder/per_layer_projection/kernel": (of_all, self.width),
                "embedder/per_layer_norm/scale": (self.per_layer_width,),
            }
        for index in range(len(self.layers)):
            shapes = self._layer_shapes(index)
            leaves |= {f"layer_{index}/{path}": shape for path, shape in shapes.items()}
        for index, sizes in enumerate(zip(self.dense, (self.width, *self.dense), strict=False)):
            leaves[f"dense_{index}/kernel"] = sizes
        return leaves | {"final_norm/scale": (self.width,)}

    def fused_rows(self, index: int) -> dict[str, tuple[int, ...]]:
        """The rows of each matrix in those leaves of layer `index` that stack several."""
        layer = self.layers[index]
        q, kv = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        cached = () if layer.kv_layer is not None else (kv,) if layer.keys_are_values else (kv, kv)
        rows = {
            "attention/qkv/kernel": (q, *cached),
            "feed_forward/gate_up/kernel": (layer.hidden, layer.hidden),
        }
        if self.experts is not None:  # each one's gate and up
            rows["experts/gate_up/kernel"] = (self.experts.hidden,) * 2 * self.experts.count
        return rows

    def _layer_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        layer, d, h = self.layers[index], self.width, self.layers[index].head_dim
        shapes: dict[str, tuple[int, ...]] = {
            path: (sum(rows), d) for path, rows in self.fused_rows(index).items()
        }
        shapes |= {
            "attention/output/kernel": (d, layer.heads * h),
            "feed_forward/down/kernel": (d, layer.hidden),
            "pre_attention_norm/scale": (d,),
            "pre_feed_forward_norm/scale": (d,),
        }
        if self.qk_norm:
            shapes["attention/query_norm/scale"] = (h,)
            if layer.kv_layer is None:
                shapes["attention/key_norm/scale"] = (h,)
        if self.post_norms:
            shapes |= {"post_attention_norm/scale": (d,), "post_feed_forward_norm/scale": (d,)}
        if self.per_layer_width is not None:
            shapes |= {
                "per_layer/gate/kernel": (self.per_layer_width, d),
                "per_layer/projection/kernel": (d, self.per_layer_width),
                "per_layer/norm/scale": (d,),
            }
        if self.experts is not None:
            shapes |= _expert_shapes(self.experts, d)
        if self.output_scale:
            shapes["output/scale"] = (1,)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights, the tied output layer counted once."""
        return sum(map(math.prod, self.leaf_shapes.values()))

    @property
    def embedding_width(self) -> int:
        """Numbers of a text's embedding."""
        return self.dense[-1] if self.dense else self.width

    @property
    def cached_numbers_per_token(self) -> int:
        """Numbers that the KV cache keeps for one token; a model that embeds texts keeps none."""
        if self.bidirectional:
            return 0
        owners = (self.layers[index] for index in self.cached_layers)
        return sum(2 * layer.kv_heads * layer.head_dim for layer in owners)


def _expert_shapes(experts: Experts, width: int) -> dict[str, tuple[int, ...]]:
    """The leaves of a mixture but one, which is fused. The matrices of all experts lie below each
    other."""
    count, hidden = experts.count, experts.hidden
    return {
        "experts/router/norm/scale": (width,),
        "experts/router/kernel": (count, width),
        "experts/router/expert/scale": (count,),
        "experts/down/kernel": (count * width, hidden),
        "pre_experts_norm/scale": (width,),
        "post_experts_norm/scale": (width,),
        "post_dense_norm/scale": (width,),
    }


def stays_float32(leaf: str) -> bool:
    """Whether a leaf is float32 whatever the dtype of the others: scales, which are few, the
    router, whose choice of experts a rounding would change, and what follows the mean of a text."""
    return leaf.endswith(("/scale", "/router/kernel")) or leaf.startswith("dense_")
