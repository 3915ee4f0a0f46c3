"""Gemma 4 as its checkpoints describe it, layer by layer: what several formats share."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import RELEASED, Experts, GemmaConfig, LayerConfig


@dataclass(frozen=True)
class StoredLayer:
    """The sizes of a layer's tensors."""

    heads: int
    head_dim: int
    hidden: int
    kv_heads: int | None  # None: no keys are stored
    has_values: bool


@dataclass(frozen=True)
class Kinds:
    """What no tensor shows of local and of global layers. The last `sharing` layers use the keys
    and values of the last layer before them that is of their kind."""

    local: tuple[bool, ...]  # of each layer
    sharing: int
    window: int  # of local layers
    local_base: float
    global_base: float
    global_share: float  # of the pairs, those that turn


def heads_of(rows: int, head_dim: int) -> int:
    """How many heads so many rows are. Raises ValueError if they are none."""
    if head_dim < 1 or rows % head_dim:
        raise ValueError(f"{rows} rows are no heads of {head_dim}")
    return rows // head_dim


def layers_of(where: str, stored: Sequence[StoredLayer], kinds: Kinds) -> tuple[LayerConfig, ...]:
    """The layers of a Gemma 4.

    Raises:
        ModelLoadError: sizes and kinds do not fit together.
    """
    if not 0 <= kinds.sharing < len(stored):
        raise ModelLoadError(f"{where}: {kinds.sharing} of {len(stored)} layers share keys")
    owners = len(stored) - kinds.sharing
    last_of = {is_local: index for index, is_local in enumerate(kinds.local[:owners])}
    layers: list[LayerConfig] = []
    for index, layer in enumerate(stored):
        is_local, source = kinds.local[index], None
        kv_heads, has_values = layer.kv_heads, layer.has_values
        if index >= owners:
            source = last_of.get(is_local)
            if source is None:
                raise ModelLoadError(f"{where}: no layer has keys and values for layer {index}")
            kv_heads, has_values = layers[source].kv_heads, True
        if kv_heads is None:
            raise ModelLoadError(f"{where}: layer {index} has no keys")
        try:
            layers.append(
                LayerConfig(
                    layer.heads,
                    kv_heads,
                    layer.head_dim,
                    layer.hidden,
                    window=kinds.window if is_local else None,
                    rope_base=kinds.local_base if is_local else kinds.global_base,
                    rope_share=1.0 if is_local else kinds.global_share,
                    kv_layer=source,
                    keys_are_values=not has_values,
                )
            )
        except ValueError as error:
            raise ModelLoadError(f"{where}: layer {index}: {error}") from None
    return tuple(layers)


def config_with(
    where: str,
    layers: tuple[LayerConfig, ...],
    *,
    width: int,
    vocab: int,
    context_length: int,
    final_softcap: float | None,
    per_layer_width: int | None,
    experts: Experts | None,
    norm_eps: float,
) -> GemmaConfig:
    """A Gemma 4, with the name of the released model of its size, if there is one.

    Raises:
        ModelLoadError: no Gemma could have these numbers.
    """
    released = {(row.config().layers, row.width): row.name for row in RELEASED if row.output_scale}
    try:
        return GemmaConfig(
            name=released.get((layers, width), f"gemma-4-{len(layers)}x{width}"),
            width=width,
            vocab=vocab,
            context_length=context_length,
            query_scale=1.0,
            layers=layers,
            final_softcap=final_softcap,
            qk_norm=True,
            post_norms=True,
            value_norm=True,
            output_scale=True,
            per_layer_width=per_layer_width,
            experts=experts,
            norm_eps=norm_eps,
        )
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}") from None
