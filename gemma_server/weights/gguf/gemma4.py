"""A Gemma 4's architecture from GGUF metadata and the shapes of its tensors.

Names: ggml-org/llama.cpp, `gguf-py/gguf/constants.py` and `src/models/gemma4.cpp`; Ollama's
converter, `convert/convert_gemma4.go`, writes the same.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Experts, GemmaConfig, LayerConfig
from gemma_server.weights.gemma4 import (
    Kinds,
    Names,
    Shapes,
    Stored,
    check_sizes,
    config_with,
    experts_of,
    head_dims_of,
    layers_of,
    read_sizes,
)
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.numbers import Numbers

_TABLE, _OWN_TABLE, _FREQUENCIES = (
    f"{name}.weight" for name in ("token_embd", "per_layer_token_embd", "rope_freqs")
)
_NEVER_TURNS = 1e20  # divides a pair's angle: real files have 1e30
_SHARE = 0.25  # of the pairs of global layers turn, where no tensor says it

BESIDE = frozenset((_FREQUENCIES,))  # the architecture has what it says
OUTSIDE_BLOCKS = {
    "embedder/per_layer_embedding": _OWN_TABLE,
    "embedder/per_layer_projection/kernel": "per_layer_model_proj.weight",
    "embedder/per_layer_norm/scale": "per_layer_proj_norm.weight",
}
FUSED_EXPERTS = "experts/gate_up/kernel"
IN_BLOCKS = {
    "per_layer/gate/kernel": "inp_gate.weight",
    "per_layer/projection/kernel": "proj.weight",
    "per_layer/norm/scale": "post_norm.weight",
    "output/scale": "layer_output_scale.weight",
    "experts/router/norm/scale": "ffn_gate_inp.scale",
    "experts/router/kernel": "ffn_gate_inp.weight",
    "experts/router/expert/scale": "ffn_down_exps.scale",
    FUSED_EXPERTS: "ffn_gate_up_exps.weight",
    "experts/down/kernel": "ffn_down_exps.weight",
    "pre_experts_norm/scale": "pre_ffw_norm_2.weight",
    "post_experts_norm/scale": "post_ffw_norm_2.weight",
    "post_dense_norm/scale": "post_ffw_norm_1.weight",
}
NAMES = Names(
    "block_count",
    _TABLE,
    _OWN_TABLE,
    *(
        f"blk.{{}}.{name}.weight"
        for name in ("attn_q", "attn_q_norm", "attn_k", "attn_k_norm", "attn_v", "ffn_gate")
    ),
)
# What no Gemma 4 has otherwise; where a file does not say it, too.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (0.0,),
    "attention.scale": (0.0, 1.0),
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": (0.0, 1.0),
    "expert_gating_func": (1, 0),  # softmax, or not said
}


def gemma4_config(file: GgufFile) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against the metadata; the rest from that.

    Raises:
        ModelLoadError: it is no Gemma 4, or the two contradict each other.
    """
    where = str(file.path)
    number = Numbers(file.metadata, where, "gemma4.")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    refuse_unusual(file, number, _USUAL)
    stored = read_sizes(where, number, shapes, NAMES)
    kinds = _kinds(file, number, len(stored.layers))
    layers = layers_of(where, stored, kinds)
    experts = _experts(where, number, shapes)
    check_sizes(number, sizes_of(stored, kinds, layers))
    for name, size in (
        ("embedding_length_per_layer_input", stored.per_layer_width),
        ("expert_count", experts and experts.count),
    ):
        if number.whole(name, size or 0, least=0) != (size or 0):
            raise number.wrong(name, f"its tensors have {size or 0}")
    return config_with(
        where,
        layers,
        stored,
        context_length=number.whole("context_length", 131_072),
        final_softcap=number.real_or_none("final_logit_softcapping", None),
        experts=experts,
        norm_eps=number.real("attention.layer_norm_rms_epsilon", 1e-6),
    )


def refuse_unusual(file: GgufFile, number: Numbers, usual: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what no such model has; a file may leave the names out.

    Raises:
        ModelLoadError: a value is not among the usual ones.
    """
    family = file.metadata["general.architecture"]
    for name, values in usual.items():
        said = file.metadata.get(f"{family}.{name}", values[0])
        if isinstance(said, list | np.ndarray) or said not in values:
            raise number.wrong(name, "not supported")


def sizes_of(
    stored: Stored, kinds: Kinds, layers: Sequence[LayerConfig]
) -> dict[str, Collection[int]]:
    """What the tensors say of each size that the metadata has a name for."""
    wide = head_dims_of(stored, kinds, local=False)
    narrow = head_dims_of(stored, kinds, local=True) or wide
    return {
        "embedding_length": {stored.width},
        "attention.head_count": {layer.heads for layer in layers},
        "attention.head_count_kv": {layer.kv_heads for layer in layers},
        "attention.key_length": wide,
        "attention.value_length": wide,
        "rope.dimension_count": wide,
        "attention.key_length_swa": narrow,
        "attention.value_length_swa": narrow,
        "rope.dimension_count_swa": narrow,
        "feed_forward_length": {layer.hidden for layer in layers},
    }


def _experts(where: str, number: Numbers, shapes: Shapes) -> Experts | None:
    """The mixture, whether gate and up are in one tensor or in two."""
    fused, apart = (shapes.get(f"blk.0.ffn_{name}_exps.weight") for name in ("gate_up", "gate"))
    if fused is None and apart is None:
        return None
    chosen = number.whole("expert_used_count")
    return experts_of(where, fused or apart, chosen, fused=fused is not None)


def local_layers(number: Numbers, layers: int) -> tuple[bool, ...]:
    """Which layers are local: the file has a flag for each, or a period.

    Raises:
        ModelLoadError: there are more or fewer flags than layers.
    """
    pattern = "attention.sliding_window_pattern"
    local = number.flags(pattern)
    if local is None:
        period = number.whole(pattern, 6)
        local = tuple(bool((index + 1) % period) for index in range(layers))
    if len(local) != layers:
        raise number.wrong(pattern, f"{len(local)} flags, but it has {layers} layers")
    return local


def _kinds(file: GgufFile, number: Numbers, layers: int) -> Kinds:
    return Kinds(
        local=local_layers(number, layers),
        sharing=number.whole("attention.shared_kv_layers", 0, least=0),
        window=number.whole("attention.sliding_window", 512),
        local_base=number.real("rope.freq_base_swa", 10_000.0),
        global_base=number.real("rope.freq_base", 1_000_000.0),
        global_share=_share(file),
    )


def _share(file: GgufFile) -> float:
    """The share of a global head's pairs that turn: the first ones, whose angle is divided by 1."""
    if _FREQUENCIES not in file.tensors:
        return _SHARE
    file.refuse_undecodable([_FREQUENCIES])
    divisors = np.empty(file.tensors[_FREQUENCIES].shape, np.float32)
    file.copy(_FREQUENCIES, divisors)
    turning = int((divisors == 1.0).sum())
    if divisors.ndim != 1 or not turning or not (divisors[turning:] > _NEVER_TURNS).all():
        raise ModelLoadError(f"{file.path}: {_FREQUENCIES} holds what no Gemma 4 has")
    return turning / divisors.size
