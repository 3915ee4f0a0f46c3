"""Gemma 4 as its checkpoints describe it, layer by layer: what several formats share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Experts, GemmaConfig, LayerConfig
from gemma_server.model.presets import EMBEDDERS, RELEASED
from gemma_server.weights.architecture import count_layers
from gemma_server.weights.numbers import Numbers

Shapes = Mapping[str, tuple[int, ...]]


class Names(NamedTuple):
    """What a format calls the number of layers, the two tables, and the tensors of layer `{}` that
    show its sizes."""

    layers: str
    table: str
    own_table: str
    queries: str
    query_norm: str
    keys: str
    key_norm: str
    values: str
    gate: str


@dataclass(frozen=True)
class StoredLayer:
    """The sizes of a layer's tensors."""

    heads: int
    head_dim: int
    hidden: int
    kv_heads: int | None  # None: no keys are stored
    has_values: bool


@dataclass(frozen=True)
class Stored:
    """The sizes of a model's tensors."""

    vocab: int
    width: int
    per_layer_width: int | None
    layers: list[StoredLayer]


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
    keys_are_values: bool | None = None  # in global layers; None: where no values are stored


def read_sizes(where: str, number: Numbers, shapes: Shapes, names: Names) -> Stored:
    """The sizes of a model, of as many layers as the file says.

    Raises:
        ModelLoadError: they are not a Gemma 4's.
    """
    before = names.queries.partition("{}")[0]
    indices = (
        name.removeprefix(before).partition(".")[0] for name in shapes if name.startswith(before)
    )
    try:
        vocab, width = shapes[names.table]
        count = count_layers(number, names.layers, indices)
        own = shapes[names.own_table][1] // count if names.own_table in shapes else None
        return Stored(vocab, width, own, _stored_layers(shapes, count, names))
    except (KeyError, ValueError, IndexError) as error:
        raise ModelLoadError(f"{where}: not a Gemma 4: {error}") from None


def _stored_layers(shapes: Shapes, count: int, names: Names) -> list[StoredLayer]:
    def layer(index: int) -> StoredLayer:
        def shape(name: str) -> tuple[int, ...]:
            return shapes[name.format(index)]

        [head_dim] = shape(names.query_norm)
        keys = shapes.get(names.keys.format(index))
        return StoredLayer(
            heads=_heads(shape(names.queries)[0], head_dim),
            head_dim=head_dim,
            hidden=shape(names.gate)[0],
            kv_heads=None if keys is None else _heads(keys[0], head_dim),
            has_values=names.values.format(index) in shapes,
        )

    return list(map(layer, range(count)))


def _heads(rows: int, head_dim: int) -> int:
    if head_dim < 1 or rows % head_dim:
        raise ValueError(f"{rows} rows are no heads of {head_dim}")
    return rows // head_dim


def check_sizes(number: Numbers, found: Mapping[str, Collection[int]]) -> None:
    """Refuse a file that says other sizes than its tensors have. One that says none is believed.

    Raises:
        ModelLoadError: a number is not among those found.
    """
    for name, sizes in found.items():
        for said in number.wholes(name):
            if said not in sizes:
                raise number.wrong(name, f"its tensors have {sorted(sizes)}")


def head_dims_of(stored: Stored, kinds: Kinds, *, local: bool) -> set[int]:
    """The widths of the heads of one kind of layer."""
    of_each = zip(stored.layers, kinds.local, strict=True)
    return {layer.head_dim for layer, is_local in of_each if is_local == local}


def experts_of(where: str, shape: tuple[int, ...] | None, chosen: int, fused: bool) -> Experts:
    """The mixture, from the shape of a layer's gates, or of its gates and ups.

    Raises:
        ModelLoadError: no mixture has such sizes.
    """
    if shape is None or len(shape) != 3 or (fused and shape[1] % 2):
        raise ModelLoadError(f"{where}: its experts have the shape {list(shape or ())}")
    try:
        return Experts(shape[0], chosen, shape[1] // 2 if fused else shape[1])
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}") from None


def layers_of(where: str, stored: Stored, kinds: Kinds) -> tuple[LayerConfig, ...]:
    """The layers of a Gemma 4.

    Raises:
        ModelLoadError: sizes and kinds do not fit together.
    """
    count = len(stored.layers)
    if not 0 <= kinds.sharing < count:
        raise ModelLoadError(f"{where}: {kinds.sharing} of {count} layers share keys")
    for local in (True, False):
        if len(head_dims_of(stored, kinds, local=local)) > 1:
            what = "local" if local else "global"
            raise ModelLoadError(f"{where}: its {what} layers have heads of several widths")
    owners = count - kinds.sharing
    last_of = {is_local: index for index, is_local in enumerate(kinds.local[:owners])}
    layers: list[LayerConfig] = []
    for index, layer in enumerate(stored.layers):
        is_local, source = kinds.local[index], None
        kv_heads = layer.kv_heads
        keys_are_values = not is_local and (
            not layer.has_values if kinds.keys_are_values is None else kinds.keys_are_values
        )
        if index >= owners:
            source = last_of.get(is_local)
            if source is None:
                raise ModelLoadError(f"{where}: no layer has keys and values for layer {index}")
            kv_heads, keys_are_values = layers[source].kv_heads, False
        elif kv_heads is None or not (layer.has_values or keys_are_values):
            raise ModelLoadError(f"{where}: layer {index} has no keys or no values")
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
                    keys_are_values=keys_are_values,
                )
            )
        except ValueError as error:
            raise ModelLoadError(f"{where}: layer {index}: {error}") from None
    return tuple(layers)


def dead_tensors(config: GemmaConfig, names: Names) -> frozenset[str]:
    """Names of tensors that some files have and nothing reads: keys and values of layers that use
    another's, and values of those whose keys are their values."""
    dead = set[str]()
    for index, layer in enumerate(config.layers):
        if layer.kv_layer is not None:
            dead |= {name.format(index) for name in (names.keys, names.key_norm, names.values)}
        elif layer.keys_are_values:
            dead.add(names.values.format(index))
    return frozenset(dead)


def config_with(
    where: str,
    layers: tuple[LayerConfig, ...],
    stored: Stored,
    *,
    context_length: int,
    final_softcap: float | None,
    experts: Experts | None,
    norm_eps: float,
    **more: Any,
) -> GemmaConfig:
    """A Gemma 4, with the name of the released model of its size, if there is one, and with `more`
    fields.

    Raises:
        ModelLoadError: no Gemma could have these numbers.
    """
    rows = [row for row in (*RELEASED, *EMBEDDERS) if row.output_scale]
    released = {(row.config().layers, row.width): row.name for row in rows}
    family = "embeddinggemma-2" if more.get("bidirectional") else "gemma-4"
    try:
        return GemmaConfig(
            name=released.get((layers, stored.width), f"{family}-{len(layers)}x{stored.width}"),
            width=stored.width,
            vocab=stored.vocab,
            context_length=context_length,
            query_scale=1.0,
            layers=layers,
            final_softcap=final_softcap,
            qk_norm=True,
            post_norms=True,
            value_norm=True,
            output_scale=True,
            per_layer_width=stored.per_layer_width,
            experts=experts,
            norm_eps=norm_eps,
            **more,
        )
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}") from None
