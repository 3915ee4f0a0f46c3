"""What DeepMind's checkpoints of Gemma 4 call their arrays, and how these are laid out.

Names and shapes: google-deepmind/gemma, `gemma/gm/nn/gemma4/_modules.py` and `_moe.py`. Letters in
shapes: N query heads, K key/value heads, H head dimension, L layers, E experts, M their width.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gemma_server.model.config import GemmaConfig


class Place(NamedTuple):
    """An array, and the order of its axes in a matrix [out, in]."""

    name: str
    axes: tuple[int, ...] = ()  # none: it is taken as it is
    columns: int = 1  # of the axes, those that make up `in`


OUTSIDE_LAYERS: Mapping[str, Place] = {
    "embedder/embedding": Place("embedder/input_embedding"),
    "embedder/per_layer_embedding": Place("embedder/per_layer_embeddings", (0, 1, 2), 2),
    "embedder/per_layer_projection/kernel": Place(
        "embedder/per_layer_model_projection/w",
        (1, 2, 0),  # from [D, L, P]
    ),
    "embedder/per_layer_norm/scale": Place("embedder/per_layer_projection_norm/scale"),
    "final_norm/scale": Place("final_norm/scale"),
}
_IN_LAYERS: Mapping[str, Place] = {
    "attention/output/kernel": Place("attn/attn_vec_einsum/w", (2, 0, 1), 2),  # from [N, H, D]
    "attention/query_norm/scale": Place("attn/query_norm/scale"),
    "attention/key_norm/scale": Place("attn/key_norm/scale"),
    "pre_attention_norm/scale": Place("pre_attention_norm/scale"),
    "post_attention_norm/scale": Place("post_attention_norm/scale"),
    "post_feed_forward_norm/scale": Place("post_ffw_norm/scale"),
    "per_layer/gate/kernel": Place("per_layer_input_gate/w", (1, 0)),
    "per_layer/projection/kernel": Place("per_layer_projection/w", (1, 0)),
    "per_layer/norm/scale": Place("post_per_layer_input_norm/scale"),
    "output/scale": Place("skip_scale"),
}
_DENSE: Mapping[str, Place] = {
    "feed_forward/gate_up/kernel": Place("mlp/gating_einsum/w", (0, 1, 2)),  # from [2, F, D]
    "feed_forward/down/kernel": Place("mlp/linear/w", (1, 0)),  # from [F, D]
    "pre_feed_forward_norm/scale": Place("pre_ffw_norm/scale"),
}
# Beside experts, which take its names, the dense layer is the second.
_WITH_EXPERTS: Mapping[str, Place] = {
    "feed_forward/gate_up/kernel": Place("mlp2/gating_einsum/w", (0, 1, 2)),
    "feed_forward/down/kernel": Place("mlp2/linear/w", (1, 0)),
    "pre_feed_forward_norm/scale": Place("pre_ffw2_norm/scale"),
    "post_dense_norm/scale": Place("post_ffw2_norm/scale"),
    "pre_experts_norm/scale": Place("pre_ffw_norm/scale"),
    "post_experts_norm/scale": Place("post_ffw1_norm/scale"),
    "experts/gate_up/kernel": Place("mlp/gating_einsum/w", (0, 1, 2, 3)),  # from [E, 2, M, D]
    "experts/down/kernel": Place("mlp/linear/w", (0, 2, 1)),  # from [E, M, D]
    "experts/router/kernel": Place("mlp/router_logits/w", (1, 0)),  # from [D, E]
    "experts/router/norm/scale": Place("mlp/router_scale"),
    "experts/router/expert/scale": Place("mlp/per_expert_scale"),
}
_KEYS, _KEYS_AND_VALUES = "attn/k_einsum/w", "attn/kv_einsum/w"  # [K, D, H], [2, K, D, H]


def places_in(config: GemmaConfig) -> Mapping[str, Place]:
    """Where the leaves of a layer are, but for queries, keys and values."""
    return {**_IN_LAYERS, **(_DENSE if config.experts is None else _WITH_EXPERTS)}


def keys_of(config: GemmaConfig, index: int) -> str | None:
    """The array of a layer's keys, and of its values if these differ; None if it uses another's."""
    layer = config.layers[index]
    if layer.kv_layer is not None:
        return None
    return f"layer_{index}/{_KEYS if layer.keys_are_values else _KEYS_AND_VALUES}"


def dead_arrays(config: GemmaConfig) -> frozenset[str]:
    """What is stored for layers that use another's keys and values, and nothing reads."""
    return frozenset(
        f"layer_{index}/{name}"
        for index, layer in enumerate(config.layers)
        if layer.kv_layer is not None
        for name in (_KEYS, _KEYS_AND_VALUES, "attn/key_norm/scale")
    )
