"""Tiny Gemma 4s in DeepMind's names and layouts, and the rows of numbers that describe them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import Experts
from gemma_server.model.presets import Preset
from testing.gemma4 import CONTEXT_LENGTH, gemma4_weights
from testing.oracle.gemma4 import PRESETS
from testing.tiny import Weights

DEAD = 7.0  # what layers that use another's keys and values have in place of their own


def gemma4_preset(name: str) -> Preset:
    """What no Orbax file says of a preset; its name is that of another unknown size."""
    c = PRESETS[name]
    return Preset(
        name=f"gemma-4-{c.layers}x{c.width}",
        layers=c.layers,
        width=c.width,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        hidden=c.hidden,
        vocab=c.vocab,
        context_length=CONTEXT_LENGTH,
        query_scale=1.0,
        local_layers=c.local,
        window=c.window,
        final_softcap=c.softcap,
        qk_norm=True,
        post_norms=True,
        global_rope_base=1_000_000.0,
        global_rope_share=c.rope_share,
        global_head_dim=c.global_head_dim,
        global_kv_heads=c.global_kv_heads,
        global_keys_are_values=c.keys_are_values,
        sharing_layers=c.sharing,
        sharing_hidden=c.sharing_hidden or None,
        value_norm=True,
        output_scale=True,
        per_layer_width=c.per_layer or None,
        experts=Experts(c.experts, c.chosen, c.expert_hidden) if c.experts else None,
    )


def gemma4_flat(name: str) -> Weights:
    """A preset's weights as a released checkpoint has them, dead keys and values included."""
    c, weights = PRESETS[name], gemma4_weights(name)
    embedder = {"input_embedding": weights["embed_tokens.weight"]}
    tree: dict[str, dict[str, npt.NDArray[Any]]] = {"embedder": embedder}
    if c.per_layer:
        own = (c.layers, c.per_layer)
        embedder["per_layer_embeddings"] = weights["embed_tokens_per_layer.weight"].reshape(
            -1, *own
        )
        projection = weights["per_layer_model_projection.weight"].T.reshape(-1, *own)
        tree["embedder/per_layer_model_projection"] = {"w": projection}
        norm = weights["per_layer_projection_norm.weight"]
        tree["embedder/per_layer_projection_norm"] = {"scale": norm}
    for i in range(c.layers):
        layer = _attention(name, i) | _feed_forward(name, i)
        tree[f"layer_{i}"] = {"skip_scale": weights[f"layers.{i}.layer_scalar"]}
        tree |= {f"layer_{i}/{path}": leaves for path, leaves in layer.items()}
    tree["final_norm"] = {"scale": weights["norm.weight"]}
    return {f"transformer/{path}": _copied(leaves) for path, leaves in tree.items()}


def _attention(name: str, i: int) -> Weights:
    c, weights, at = PRESETS[name], gemma4_weights(name), f"layers.{i}.self_attn"
    h, k = c.head_dim_of(i), c.kv_heads_of(i)

    def heads(part: str, count: int) -> npt.NDArray[Any]:
        """[N * H, D] as [N, D, H]"""
        if f"{at}.{part}.weight" not in weights:
            return np.full((count, c.width, h), DEAD, np.float32)
        return weights[f"{at}.{part}.weight"].reshape(count, h, c.width).transpose(0, 2, 1)

    output = weights[f"{at}.o_proj.weight"].T.reshape(c.heads, h, c.width)
    key_norm = weights.get(f"{at}.k_norm.weight", np.full(h, DEAD, np.float32))
    layer: Weights = {
        "attn/q_einsum": {"w": heads("q_proj", c.heads)},
        "attn/attn_vec_einsum": {"w": output},
        "attn/query_norm": {"scale": weights[f"{at}.q_norm.weight"]},
        "attn/key_norm": {"scale": key_norm},
    }
    if c.keys_are_values and not c.local[i]:
        return layer | {"attn/k_einsum": {"w": heads("k_proj", k)}}
    return layer | {"attn/kv_einsum": {"w": np.stack([heads("k_proj", k), heads("v_proj", k)])}}


# DeepMind's names of a layer's norms -> transformers', without and with experts.
_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "post_per_layer_input_norm": "post_per_layer_input_norm",
}
_DENSE_NORMS = {"pre_ffw_norm": "pre_feedforward_layernorm"}
_EXPERT_NORMS = {
    "pre_ffw_norm": "pre_feedforward_layernorm_2",
    "post_ffw1_norm": "post_feedforward_layernorm_2",
    "pre_ffw2_norm": "pre_feedforward_layernorm",
    "post_ffw2_norm": "post_feedforward_layernorm_1",
}


def _feed_forward(name: str, i: int) -> Weights:
    """The feed-forward layers, all norms outside of the attention, and the layer's own input."""
    c = PRESETS[name]
    here = {
        key.removeprefix(f"layers.{i}.").removesuffix(".weight"): array
        for key, array in gemma4_weights(name).items()
        if key.startswith(f"layers.{i}.")
    }
    norms = _NORMS | (_EXPERT_NORMS if c.experts else _DENSE_NORMS)
    layer: Weights = {
        ours: {"scale": here[theirs]} for ours, theirs in norms.items() if theirs in here
    }
    if c.experts:
        gating = here["experts.gate_up_proj"].reshape(c.experts, 2, c.expert_hidden, c.width)
        router = {
            "router_scale": here["router.scale"],
            "per_expert_scale": here["router.per_expert_scale"],
        }
        layer |= {
            "mlp": router,
            "mlp/router_logits": {"w": here["router.proj"].T},
            "mlp/gating_einsum": {"w": gating},
            "mlp/linear": {"w": here["experts.down_proj"].transpose(0, 2, 1)},
        }
    dense = "mlp2" if c.experts else "mlp"
    gate_up = np.stack([here["mlp.gate_proj"], here["mlp.up_proj"]])
    layer |= {
        f"{dense}/gating_einsum": {"w": gate_up},
        f"{dense}/linear": {"w": here["mlp.down_proj"].T},
    }
    if c.per_layer:
        layer |= {
            path: {"w": here[path].T} for path in ("per_layer_input_gate", "per_layer_projection")
        }
    return layer


def _copied(leaves: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {leaf: np.ascontiguousarray(array) for leaf, array in leaves.items()}
