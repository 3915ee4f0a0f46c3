"""From a checkpoint's metadata to its row of numbers: what several formats share."""

import logging
from collections.abc import Iterable, Mapping

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.model.presets import Preset, Shape, preset_for
from gemma_server.weights.numbers import Numbers

logger = logging.getLogger(__name__)

# What tells the generations apart: norms on q and k, and after the blocks; a scale of the output.
_NORMS_OF = {
    "gemma": (False, False, False),
    "vaultgemma": (False, False, False),
    "gemma2": (False, True, False),
    "gemma3": (True, True, False),
    "gemma4": (True, True, True),
}
_CAPPED = {"gemma": False, "vaultgemma": True}  # the logits, where the norms tell nothing

# Relatives of Gemma by transformers' model_type or llama.cpp's architecture, and why not.
_NOT_SERVED: Mapping[str, str] = {
    name: why
    for why, names in {
        "it has an encoder beside the decoder": (
            *("t5gemma", "t5_gemma_module", "t5gemma2", "t5gemma2_text", "t5gemma2_encoder"),
            "t5gemma2_decoder",
        ),
        "its layers are recurrent": ("recurrent_gemma", "recurrentgemma"),
        "it does not write token by token": (
            *("diffusion_gemma", "diffusion_gemma_text", "diffusiongemma", "diffusion-gemma"),
        ),
        "it reads an image first": ("paligemma",),
        "it classifies images": ("shieldgemma2",),
        "its layers are unlike those of other Gemmas": ("gemma3n", "gemma3n_text"),
        "it drafts for another model": (
            *("gemma4_assistant", "gemma4_unified_assistant", "gemma4-assistant"),
        ),
        "llama.cpp has no such model; take its Hugging Face directory": ("vaultgemma",),
    }.items()
    for name in names
}


def not_served(where: str, name: str, kind: object) -> ModelLoadError:
    """The error for a checkpoint of this kind, which the file states under this name."""
    why = "it is no Gemma"
    if isinstance(kind, str):
        why = _NOT_SERVED.get(kind, why)
    return ModelLoadError(f"{where}: {name} {str(kind)[:100]!r} is not served: {why}")


def family_of(config: GemmaConfig) -> str:
    """The generation whose norms these are; of models that embed texts, llama.cpp's name."""
    if config.bidirectional:
        return "gemma-embedding2" if config.output_scale else "gemma-embedding"
    norms, capped = (
        (config.qk_norm, config.post_norms, config.output_scale),
        config.final_softcap is not None,
    )
    return next(
        family
        for family in _NORMS_OF
        if _NORMS_OF[family] == norms and _CAPPED.get(family, capped) == capped
    )


def count_layers(number: Numbers, name: str, found: Iterable[str]) -> int:
    """The number of layers that the file states, checked against the layers found.

    Raises:
        ModelLoadError: they differ; `name` is the name of the number.
    """
    layers, indices = number.whole(name), set(found)
    if indices != {str(i) for i in range(min(layers, len(indices) + 1))}:
        raise number.wrong(name, f"its tensors are those of {len(indices)} layers")
    return layers


def preset_of_family(where: str, family: str, shape: Shape) -> Preset:
    """The preset for the shape, which has to be of `family`.

    Raises:
        ModelLoadError: its norms are another generation's, or its sizes do not fit together.
    """
    if (shape.qk_norm, shape.post_norms, shape.output_scale) != _NORMS_OF[family]:
        raise ModelLoadError(f"{where}: its norms are not those of {family}")
    try:
        return preset_for(shape, capped=_CAPPED.get(family))
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}") from None


def warn_without_dense(where: str, config: GemmaConfig) -> None:
    """Warn of an EmbeddingGemma that lacks its dense layers: the first GGUF files of it do."""
    if config.bidirectional and not config.dense:
        logger.warning(
            "%s: it has no dense layers, which follow the mean of a text's tokens: its embeddings "
            "cannot be compared with those of the published model",
            where,
        )


def config_of(where: str, preset: Preset) -> GemmaConfig:
    """The architecture, layer by layer.

    Raises:
        ModelLoadError: no Gemma could have such numbers.
    """
    try:
        return preset.config()
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}") from None
