"""A Gemma 4's architecture from config.json and the shapes of its tensors.

Names and numbers: huggingface/transformers, `models/gemma4/configuration_gemma4.py` and
`modeling_gemma4.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Experts, GemmaConfig, LayerConfig
from gemma_server.weights.gemma4 import (
    Kinds,
    Names,
    Shapes,
    check_sizes,
    config_with,
    experts_of,
    head_dims_of,
    layers_of,
    read_sizes,
)
from gemma_server.weights.numbers import Numbers

_TABLE = "embed_tokens.weight"
_OWN_TABLE = "embed_tokens_per_layer.weight"
_ROPE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 1_000_000.0,
        "partial_rotary_factor": 0.25,
    },
}

OUTSIDE_LAYERS = {
    "embedder/per_layer_embedding": _OWN_TABLE,
    "embedder/per_layer_projection/kernel": "per_layer_model_projection.weight",
    "embedder/per_layer_norm/scale": "per_layer_projection_norm.weight",
}
IN_LAYERS = {
    "per_layer/gate/kernel": "per_layer_input_gate.weight",
    "per_layer/projection/kernel": "per_layer_projection.weight",
    "per_layer/norm/scale": "post_per_layer_input_norm.weight",
    "output/scale": "layer_scalar",
    "experts/router/norm/scale": "router.scale",
    "experts/router/kernel": "router.proj.weight",
    "experts/router/expert/scale": "router.per_expert_scale",
    "experts/gate_up/kernel": "experts.gate_up_proj",
    "experts/down/kernel": "experts.down_proj",
    "pre_experts_norm/scale": "pre_feedforward_layernorm_2.weight",
    "post_experts_norm/scale": "post_feedforward_layernorm_2.weight",
    "post_dense_norm/scale": "post_feedforward_layernorm_1.weight",
}
NAMES = Names(
    "num_hidden_layers",
    _TABLE,
    _OWN_TABLE,
    *(
        f"layers.{{}}.{name}.weight"
        for name in (
            *("self_attn.q_proj", "self_attn.q_norm", "self_attn.k_proj", "self_attn.k_norm"),
            *("self_attn.v_proj", "mlp.gate_proj"),
        )
    ),
)


def gemma4_config(path: Path, model: Mapping[str, Any], shapes: Shapes) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against config.json; the rest from that.

    Raises:
        ModelLoadError: it is no Gemma 4, or the two contradict each other.
    """
    number = Numbers(model, str(path))
    stored = read_sizes(str(path.parent), number, shapes, NAMES)
    kinds = _kinds(path, model, number, len(stored.layers))
    layers = layers_of(str(path), stored, kinds)
    own, wide = stored.per_layer_width or 0, head_dims_of(stored, kinds, local=False)
    experts = _experts(path, number, shapes)
    check_sizes(
        number,
        {
            "hidden_size": {stored.width},
            "num_attention_heads": {layer.heads for layer in layers},
            "num_key_value_heads": {layer.kv_heads for layer in layers if layer.window},
            **_of_global_layers(model, layers),
            "head_dim": head_dims_of(stored, kinds, local=True) or wide,
            "global_head_dim": wide,
            "intermediate_size": {layer.hidden for layer in layers},
            "num_experts": set() if experts is None else {experts.count},
            "moe_intermediate_size": set() if experts is None else {experts.hidden},
        },
    )
    if number.whole("hidden_size_per_layer_input", own, least=0) != own:
        raise number.wrong("hidden_size_per_layer_input", f"its tensors have {own}")
    return config_with(
        str(path),
        layers,
        stored,
        context_length=number.whole("max_position_embeddings", 131_072),
        final_softcap=number.real_or_none("final_logit_softcapping", None),
        experts=experts,
        norm_eps=number.real("rms_norm_eps", 1e-6),
    )


def _of_global_layers(
    model: Mapping[str, Any], layers: Sequence[LayerConfig]
) -> dict[str, set[int]]:
    """The number of key and value heads, which is not heeded without `attention_k_eq_v`."""
    if not model.get("attention_k_eq_v"):
        return {}
    return {"num_global_key_value_heads": {each.kv_heads for each in layers if not each.window}}


def _experts(path: Path, number: Numbers, shapes: Shapes) -> Experts | None:
    shape = shapes.get("layers.0.experts.gate_up_proj")
    if shape is None:
        return None
    return experts_of(str(path), shape, number.whole("top_k_experts"), fused=True)


def local_layers(model: Mapping[str, Any], number: Numbers, layers: int) -> tuple[bool, ...]:
    """Which layers are local.

    Raises:
        ModelLoadError: a layer's kind is missing or unknown.
    """
    types = model.get("layer_types")
    if types is None:
        types = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
    known = isinstance(types, list) and set(map(str, types)) <= set(_ROPE_DEFAULTS)
    if not known or len(types) != layers:
        raise number.wrong("layer_types", f"one of {' and '.join(_ROPE_DEFAULTS)} for each layer")
    # transformers forces the last one to be global.
    return (*(kind == "sliding_attention" for kind in types[:-1]), False)


def _kinds(path: Path, model: Mapping[str, Any], number: Numbers, layers: int) -> Kinds:
    local = local_layers(model, number, layers)
    local_base, local_share = _rope(path, model, "sliding_attention")
    global_base, global_share = _rope(path, model, "full_attention")
    if local_share != 1.0:
        raise number.wrong("rope_parameters", "local layers turn all pairs")
    return Kinds(
        local=local,
        sharing=number.whole("num_kv_shared_layers", 0, least=0),
        window=number.whole("sliding_window", 512),
        local_base=local_base,
        global_base=global_base,
        global_share=global_share,
        keys_are_values=bool(model.get("attention_k_eq_v")),
    )


def _rope(path: Path, model: Mapping[str, Any], kind: str) -> tuple[float, float]:
    """The rotary base of one kind of layer, and the share of the pairs that turn."""
    usual = _ROPE_DEFAULTS[kind]
    said = model.get("rope_parameters") or _ROPE_DEFAULTS
    found = said.get(kind) if isinstance(said, Mapping) else None
    if not isinstance(found, Mapping):
        raise ModelLoadError(f"{path}: rope_parameters has nothing for {kind}")
    number = Numbers(found, f"{path}: {kind}")
    form = found.get("rope_type", usual["rope_type"])
    if form not in (usual["rope_type"], "default"):
        raise number.wrong("rope_type", f"only {usual['rope_type']} is known")
    if number.real("factor", 1.0) != 1.0:
        raise number.wrong("factor", "no Gemma 4 scales its positions")
    # The type "default" turns all pairs, whatever the factor beside it.
    share = number.real("partial_rotary_factor", 1.0) if form == "proportional" else 1.0
    return number.real("rope_theta", usual["rope_theta"]), share
