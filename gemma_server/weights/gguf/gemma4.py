"""A Gemma 4's architecture from GGUF metadata and the shapes of its tensors.

Names: ggml-org/llama.cpp, `gguf-py/gguf/constants.py` and `src/models/gemma4.cpp`; Ollama's
converter, `convert/convert_gemma4.go`, writes the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Experts, GemmaConfig
from gemma_server.weights.architecture import count_layers
from gemma_server.weights.gemma4 import Kinds, StoredLayer, config_with, heads_of, layers_of
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.numbers import Numbers

_TABLE, _OWN_TABLE, _FREQUENCIES = (
    f"{name}.weight" for name in ("token_embd", "per_layer_token_embd", "rope_freqs")
)
_NEVER_TURNS = 1e20  # divides a pair's angle: real files have 1e30
_SHARE = 0.25  # of the pairs of global layers turn, where no tensor says it

BESIDE = (_FREQUENCIES,)  # the architecture has what it says
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
_OF_KEYS = tuple(f".{name}.weight" for name in ("attn_k", "attn_v", "attn_k_norm"))

Shapes = Mapping[str, tuple[int, ...]]


def is_dead(name: str, config: GemmaConfig) -> bool:
    """Whether a tensor is the keys or values of a layer that uses another's: some files have
    them, and nothing reads them."""
    if not (name.startswith("blk.") and name.endswith(_OF_KEYS)):
        return False
    return config.layers[int(name.split(".")[1])].kv_layer is not None


def gemma4_config(file: GgufFile) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against the metadata; the rest from that.

    Raises:
        ModelLoadError: it is no Gemma 4, or the two contradict each other.
    """
    where = str(file.path)
    number = Numbers(file.metadata, where, "gemma4.")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    try:
        vocab, width = shapes[_TABLE]
        blocks = (name.split(".")[1] for name in shapes if name.startswith("blk."))
        layers = count_layers(number, "block_count", blocks)
        stored = [_stored_layer(shapes, index) for index in range(layers)]
        per_layer = shapes[_OWN_TABLE][1] // layers if _OWN_TABLE in shapes else None
    except (KeyError, ValueError, IndexError) as error:
        raise ModelLoadError(f"{where}: not a Gemma 4: {error}") from None
    _check(number, width, stored)
    return config_with(
        where,
        layers_of(where, stored, _kinds(file, number, stored)),
        width=width,
        vocab=vocab,
        context_length=number.whole("context_length", 131_072),
        final_softcap=number.real_or_none("final_logit_softcapping", None),
        per_layer_width=per_layer,
        experts=_experts(number, shapes),
        norm_eps=number.real("attention.layer_norm_rms_epsilon", 1e-6),
    )


def _stored_layer(shapes: Shapes, index: int) -> StoredLayer:
    at = f"blk.{index}"
    [head_dim] = shapes[f"{at}.attn_q_norm.weight"]
    rows_of_keys = shapes.get(f"{at}.attn_k.weight", (None,))[0]
    return StoredLayer(
        heads=heads_of(shapes[f"{at}.attn_q.weight"][0], head_dim),
        head_dim=head_dim,
        hidden=shapes[f"{at}.ffn_gate.weight"][0],
        kv_heads=None if rows_of_keys is None else heads_of(rows_of_keys, head_dim),
        has_values=f"{at}.attn_v.weight" in shapes,
    )


def _check(number: Numbers, width: int, stored: Sequence[StoredLayer]) -> None:
    """Refuse metadata that says other sizes than the tensors have."""
    found = {
        "embedding_length": {width},
        "attention.head_count": {layer.heads for layer in stored},
        "attention.key_length": {layer.head_dim for layer in stored},
        "attention.key_length_swa": {layer.head_dim for layer in stored},
    }
    for name, sizes in found.items():
        if number.whole(name, min(sizes)) not in sizes:
            raise number.wrong(name, f"its tensors have {sorted(sizes)}")


def _experts(number: Numbers, shapes: Shapes) -> Experts | None:
    """Their sizes, whether gate and up are in one tensor or in two."""
    fused, apart = (shapes.get(f"blk.0.ffn_{name}_exps.weight") for name in ("gate_up", "gate"))
    shape = fused or apart
    if shape is None:
        return None
    if len(shape) != 3 or (fused and shape[1] % 2):
        raise number.wrong("expert_feed_forward_length", f"its experts have {list(shape)}")
    hidden = shape[1] // 2 if fused else shape[1]
    return Experts(shape[0], number.whole("expert_used_count"), hidden)


def _kinds(file: GgufFile, number: Numbers, stored: Sequence[StoredLayer]) -> Kinds:
    pattern = "attention.sliding_window_pattern"
    local = number.flags(pattern)
    if local is None:
        period = number.whole(pattern, 6)
        local = tuple(bool((index + 1) % period) for index in range(len(stored)))
    if len(local) != len(stored):
        raise number.wrong(pattern, f"{len(local)} flags, but it has {len(stored)} layers")
    return Kinds(
        local=local,
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
    divisors = np.empty(file.tensors[_FREQUENCIES].shape, np.float32)
    file.copy(_FREQUENCIES, divisors)
    turning = int((divisors == 1.0).sum())
    if not turning or not (divisors[turning:] > _NEVER_TURNS).all():
        raise ModelLoadError(f"{file.path}: {_FREQUENCIES} holds what no Gemma 4 has")
    return turning / divisors.size
