"""A Gemma 4's architecture from config.json and the shapes of its tensors.

Names and numbers: huggingface/transformers, `models/gemma4/configuration_gemma4.py` and
`modeling_gemma4.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Experts, GemmaConfig
from gemma_server.weights.architecture import count_layers
from gemma_server.weights.gemma4 import Kinds, StoredLayer, config_with, heads_of, layers_of
from gemma_server.weights.numbers import Numbers

Shapes = Mapping[str, tuple[int, ...]]

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
_OF_KEYS = tuple(f"self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm"))


def is_dead(name: str, config: GemmaConfig) -> bool:
    """Whether a tensor is the keys or values of a layer that uses another's: some files have
    them, and nothing reads them."""
    if not (name.startswith("layers.") and name.endswith(_OF_KEYS)):
        return False
    return config.layers[int(name.split(".")[1])].kv_layer is not None


def gemma4_config(path: Path, model: Mapping[str, Any], shapes: Shapes) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against config.json; the rest from that.

    Raises:
        ModelLoadError: it is no Gemma 4, or the two contradict each other.
    """
    number = Numbers(model, str(path))
    try:
        vocab, width = shapes[_TABLE]
        names = (name.split(".")[1] for name in shapes if name.startswith("layers."))
        layers = count_layers(number, "num_hidden_layers", names)
        stored = [_stored_layer(shapes, index) for index in range(layers)]
        per_layer = shapes[_OWN_TABLE][1] // layers if _OWN_TABLE in shapes else None
    except (KeyError, ValueError, IndexError) as error:
        raise ModelLoadError(f"{path.parent}: not a Gemma 4: {error}") from None
    _check(number, width, stored)
    if number.whole("hidden_size_per_layer_input", per_layer or 0, least=0) != (per_layer or 0):
        raise number.wrong("hidden_size_per_layer_input", f"its tensors have {per_layer or 0}")
    return config_with(
        str(path),
        layers_of(str(path), stored, _kinds(path, model, number, layers)),
        width=width,
        vocab=vocab,
        context_length=number.whole("max_position_embeddings", 131_072),
        final_softcap=number.real_or_none("final_logit_softcapping", None),
        per_layer_width=per_layer,
        experts=_experts(number, shapes),
        norm_eps=number.real("rms_norm_eps", 1e-6),
    )


def _stored_layer(shapes: Shapes, index: int) -> StoredLayer:
    at = f"layers.{index}"
    [head_dim] = shapes[f"{at}.self_attn.q_norm.weight"]
    rows_of_keys = shapes.get(f"{at}.self_attn.k_proj.weight", (None,))[0]
    return StoredLayer(
        heads=heads_of(shapes[f"{at}.self_attn.q_proj.weight"][0], head_dim),
        head_dim=head_dim,
        hidden=shapes[f"{at}.mlp.gate_proj.weight"][0],
        kv_heads=None if rows_of_keys is None else heads_of(rows_of_keys, head_dim),
        has_values=f"{at}.self_attn.v_proj.weight" in shapes,
    )


def _check(number: Numbers, width: int, stored: Sequence[StoredLayer]) -> None:
    """Refuse a config.json that says other sizes than the tensors have."""
    found = {
        "hidden_size": {width},
        "num_attention_heads": {layer.heads for layer in stored},
        "head_dim": {layer.head_dim for layer in stored},
        "intermediate_size": {layer.hidden for layer in stored},
    }
    for name, sizes in found.items():
        if number.whole(name, min(sizes)) not in sizes:
            raise number.wrong(name, f"its tensors have {sorted(sizes)}")


def _experts(number: Numbers, shapes: Shapes) -> Experts | None:
    shape = shapes.get("layers.0.experts.gate_up_proj")
    if shape is None:
        return None
    if len(shape) != 3 or shape[1] % 2:
        raise number.wrong("moe_intermediate_size", f"its experts have the shape {list(shape)}")
    return Experts(shape[0], number.whole("top_k_experts"), shape[1] // 2)


def _kinds(path: Path, model: Mapping[str, Any], number: Numbers, layers: int) -> Kinds:
    types = model.get("layer_types")
    if types is None:
        types = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
    known = isinstance(types, list) and set(map(str, types)) <= set(_ROPE_DEFAULTS)
    if not known or len(types) != layers:
        raise number.wrong("layer_types", f"one of {' and '.join(_ROPE_DEFAULTS)} for each layer")
    local, everywhere = (
        _rope(path, model, "sliding_attention"),
        _rope(path, model, "full_attention"),
    )
    if local.real("partial_rotary_factor", 1.0) != 1.0:
        raise local.wrong("partial_rotary_factor", "local layers turn all pairs")
    return Kinds(
        # transformers forces the last one, too.
        local=(*(kind == "sliding_attention" for kind in types[:-1]), False),
        sharing=number.whole("num_kv_shared_layers", 0, least=0),
        window=number.whole("sliding_window", 512),
        local_base=local.real("rope_theta", 10_000.0),
        global_base=everywhere.real("rope_theta", 1_000_000.0),
        global_share=everywhere.real("partial_rotary_factor", 1.0),
    )


def _rope(path: Path, model: Mapping[str, Any], kind: str) -> Numbers:
    """The rotary parameters of one kind of layer."""
    said = model.get("rope_parameters") or _ROPE_DEFAULTS
    found = said.get(kind) if isinstance(said, dict | Mapping) else None
    if not isinstance(found, Mapping):
        raise ModelLoadError(f"{path}: rope_parameters has nothing for {kind}")
    wanted = _ROPE_DEFAULTS[kind]["rope_type"]
    number = Numbers(found, str(path), "")
    if found.get("rope_type", wanted) not in (wanted, "default"):
        raise number.wrong("rope_type", f"only {wanted} is known for {kind}")
    if number.real("factor", 1.0) != 1.0:
        raise number.wrong("factor", "no Gemma 4 scales its positions")
    return number
