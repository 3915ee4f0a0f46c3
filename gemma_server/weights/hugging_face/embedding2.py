"""The text part of an EmbeddingGemma 2 from config.json and the shapes of its tensors.

Its blocks are Gemma 4's; they look both ways, and embeddings per layer are projected alone.
Names and numbers: huggingface/transformers, `models/embedding_gemma2/`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.gemma4 import (
    Kinds,
    Shapes,
    check_sizes,
    config_with,
    head_dims_of,
    layers_of,
    read_sizes,
)
from gemma_server.weights.hugging_face.gemma4 import NAMES, OUTSIDE_LAYERS, local_layers
from gemma_server.weights.numbers import Numbers

HEAD = "embedding_projection.weight"
_PROJECTION = OUTSIDE_LAYERS["embedder/per_layer_projection/kernel"]
_ROPE_BASES = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}


def gemma4_s_name(name: str) -> str:
    """A tensor's name without the modules that Gemma 4 does not have around it."""
    return name.removeprefix("ple.").replace(".ple_block.", ".")


def embedding2_config(path: Path, model: Mapping[str, Any], shapes: Shapes) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against config.json; the rest from that.

    Raises:
        ModelLoadError: it is no EmbeddingGemma 2, or the two contradict each other.
    """
    number, where = Numbers(model, str(path)), str(path.parent)
    stored = read_sizes(where, number, shapes, NAMES)
    try:
        own, (dense, _) = shapes[_PROJECTION][0] // len(stored.layers), shapes[HEAD]
    except (KeyError, ValueError) as error:
        raise ModelLoadError(f"{where}: not an EmbeddingGemma 2: {error}") from None
    stored = replace(stored, per_layer_width=own)
    kinds = _kinds(model, number, len(stored.layers))
    layers = layers_of(str(path), stored, kinds)
    check_sizes(
        number,
        {
            "hidden_size": {stored.width},
            "num_attention_heads": {layer.heads for layer in layers},
            "num_key_value_heads": {layer.kv_heads for layer in layers if layer.window},
            "head_dim": head_dims_of(stored, kinds, local=True),
            "intermediate_size": {layer.hidden for layer in layers},
            "hidden_size_per_layer_input": {own},
            "embedding_dim": {dense},
        },
    )
    return config_with(
        str(path),
        layers,
        stored,
        context_length=number.whole("max_position_embeddings", 262_144),
        final_softcap=None,
        experts=None,
        norm_eps=number.real("rms_norm_eps", 1e-6),
        per_layer_table=False,
        bidirectional=True,
        dense=(dense,),
    )


def _kinds(model: Mapping[str, Any], number: Numbers, layers: int) -> Kinds:
    return Kinds(
        local=local_layers(model, number, layers),
        sharing=0,
        window=number.whole("sliding_window", 512) + 1,  # the file has how far it reaches
        local_base=_rope_base(model, number, "sliding_attention"),
        global_base=_rope_base(model, number, "full_attention"),
        global_share=1.0,
        keys_are_values=False,
    )


def _rope_base(model: Mapping[str, Any], number: Numbers, kind: str) -> float:
    said = model.get("rope_parameters") or {}
    found = said.get(kind, {}) if isinstance(said, Mapping) else None
    if not isinstance(found, Mapping) or found.get("rope_type", "default") != "default":
        raise number.wrong("rope_parameters", "only the type default is known")
    return Numbers(found, kind).real("rope_theta", _ROPE_BASES[kind])
