"""The architecture of an EmbeddingGemma 2's text part from GGUF metadata and the shapes of its
tensors.

Names: ggml-org/llama.cpp at the version that xllamacpp 2026.10 has, architecture
`gemma-embedding2`; the tests hold the numbers against it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.gemma4 import (
    Kinds,
    check_sizes,
    config_with,
    layers_of,
    read_sizes,
)
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.gguf.gemma4 import (
    NAMES,
    OUTSIDE_BLOCKS,
    local_layers,
    refuse_unusual,
    sizes_of,
)
from gemma_server.weights.numbers import Numbers

ARCHITECTURE = "gemma-embedding2"
HEAD = "output.weight"
_PROJECTION = OUTSIDE_BLOCKS["embedder/per_layer_projection/kernel"]
# What no EmbeddingGemma 2 has otherwise; where a file does not say it, too.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "rope.scaling.type": ("none",),
}


def embedding2_config(file: GgufFile) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against the metadata; the rest from that.

    Raises:
        ModelLoadError: it is no EmbeddingGemma 2, or the two contradict each other.
    """
    where = str(file.path)
    number = Numbers(file.metadata, where, f"{ARCHITECTURE}.")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    refuse_unusual(file, number, _USUAL)
    stored = read_sizes(where, number, shapes, NAMES)
    try:
        own, (dense, _) = shapes[_PROJECTION][0] // len(stored.layers), shapes[HEAD]
    except (KeyError, ValueError) as error:
        raise ModelLoadError(f"{where}: not an EmbeddingGemma 2: {error}") from None
    kinds = _kinds(number, len(stored.layers))
    layers = layers_of(where, stored, kinds)
    own_sizes = {"embedding_length_out": {dense}, "embedding_length_per_layer_input": {own}}
    check_sizes(number, {**sizes_of(stored, kinds, layers), **own_sizes})
    return config_with(
        where,
        layers,
        replace(stored, per_layer_width=own),
        context_length=number.whole("context_length", 262_144),
        final_softcap=None,
        experts=None,
        norm_eps=number.real("attention.layer_norm_rms_epsilon", 1e-6),
        per_layer_table=False,
        bidirectional=True,
        dense=(dense,),
    )


def _kinds(number: Numbers, layers: int) -> Kinds:
    return Kinds(
        local=local_layers(number, layers),
        sharing=0,
        # The file has what it spans on both sides; a token half of it away is still seen.
        window=number.whole("attention.sliding_window", 1024) // 2 + 1,
        local_base=number.real("rope.freq_base_swa", 10_000.0),
        global_base=number.real("rope.freq_base", 1_000_000.0),
        global_share=1.0,
        keys_are_values=False,
    )
