"""A row of numbers for each released model, and the row that fits a checkpoint's shape.

Sources: google-deepmind/gemma, `gemma/gm/nn/gemma4/_gemma4.py` (Gemma 4), `gemma/gm/nn/_gemma.py`
(Gemma 2 and 3) and `gemma/transformer.py` at tag v2.0.8 (Gemma 1); VaultGemma's model card, whose
1.04 billion parameters give the number of key and value heads. Imports no jax, so that the weight
readers may use it.
"""

from dataclasses import dataclass, replace
from typing import Any

from gemma_server.model.config import Experts, GemmaConfig, LayerConfig


@dataclass(frozen=True)
class Preset:
    """A model with local layers of one size, and global ones: every `global_every`-th. Describes
    the released models, and others by their checkpoints, which may say of each layer whether it is
    local. What is said of global layers is said of local ones where it is None.

    In Gemma 4 the last `sharing_layers` use the keys and values of the last layer before them that
    attends as they do.
    """

    name: str
    layers: int  # L
    width: int  # D
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    hidden: int  # F
    vocab: int  # V
    context_length: int
    query_scale: float
    global_every: int = 1  # layer i attends globally when (i + 1) % global_every == 0
    local_layers: tuple[bool, ...] | None = None  # one for each layer, where no period says it
    window: int | None = None  # of the local layers
    attention_softcap: float | None = None
    final_softcap: float | None = None
    qk_norm: bool = False
    post_norms: bool = False
    local_rope_base: float = 10_000.0
    global_rope_base: float = 10_000.0
    global_rope_factor: float = 1.0
    global_rope_share: float = 1.0
    global_head_dim: int | None = None
    global_kv_heads: int | None = None
    global_keys_are_values: bool = False
    sharing_layers: int = 0
    sharing_hidden: int | None = None  # F of these layers
    value_norm: bool = False
    output_scale: bool = False
    per_layer_width: int | None = None
    experts: Experts | None = None
    norm_eps: float = 1e-6
    per_layer_table: bool = True
    bidirectional: bool = False
    dense: tuple[int, ...] = ()

    def config(self) -> GemmaConfig:
        """The architecture, layer by layer.

        Raises:
            ValueError: no Gemma could have these numbers.
        """
        if not 1 <= self.layers < 2**31 or self.global_every < 1:
            counts = f"layers {self.layers}, global_every {self.global_every}"
            raise ValueError(f"no Gemma has {counts}")
        if self.local_layers is not None and len(self.local_layers) != self.layers:
            raise ValueError(f"{len(self.local_layers)} local_layers of {self.layers} layers")
        return GemmaConfig(
            name=self.name,
            width=self.width,
            vocab=self.vocab,
            context_length=self.context_length,
            query_scale=self.query_scale,
            layers=tuple(map(self._layer, range(self.layers))),
            attention_softcap=self.attention_softcap,
            final_softcap=self.final_softcap,
            qk_norm=self.qk_norm,
            post_norms=self.post_norms,
            value_norm=self.value_norm,
            output_scale=self.output_scale,
            per_layer_width=self.per_layer_width,
            experts=self.experts,
            norm_eps=self.norm_eps,
            per_layer_table=self.per_layer_table,
            bidirectional=self.bidirectional,
            dense=self.dense,
        )

    def _layer(self, index: int) -> LayerConfig:
        shares = index >= self.layers - self.sharing_layers
        hidden = self.sharing_hidden if shares and self.sharing_hidden else self.hidden
        kv_layer = self._kv_layer(index) if shares else None
        if self._is_local(index):
            return LayerConfig(
                self.heads,
                self.kv_heads,
                self.head_dim,
                hidden,
                window=self.window,
                rope_base=self.local_rope_base,
                kv_layer=kv_layer,
            )
        return LayerConfig(
            self.heads,
            self.global_kv_heads or self.kv_heads,
            self.global_head_dim or self.head_dim,
            hidden,
            rope_base=self.global_rope_base,
            rope_factor=self.global_rope_factor,
            rope_share=self.global_rope_share,
            kv_layer=kv_layer,
            keys_are_values=self.global_keys_are_values,
        )

    def _kv_layer(self, index: int) -> int:
        """The last layer with keys and values of its own that attends as this one does."""
        owners = range(self.layers - self.sharing_layers)
        alike = [owner for owner in owners if self._is_local(owner) == self._is_local(index)]
        if not alike:
            raise ValueError(f"no layer has keys and values for layer {index}")
        return alike[-1]

    def _is_local(self, index: int) -> bool:
        if self.local_layers is None:
            return (index + 1) % self.global_every != 0
        return self.local_layers[index]


def _row(name: str, sizes: tuple[int, int, int, int, int, int], **rest: object) -> Preset:
    layers, width, heads, kv_heads, head_dim, hidden = sizes
    fields: dict[str, object] = {"query_scale": head_dim**-0.5, **rest}
    return Preset(name, layers, width, heads, kv_heads, head_dim, hidden, **fields)  # type: ignore[arg-type]


_GEMMA1: dict[str, object] = {"vocab": 256_128, "context_length": 8192}
_GEMMA2: dict[str, object] = {
    **_GEMMA1,
    "global_every": 2,
    "window": 4096,
    "attention_softcap": 50.0,
    "final_softcap": 30.0,
    "post_norms": True,
}
# All layers attend globally, to texts no longer than it was trained with. Its files may say
# otherwise of a layer.
_VAULT = {
    **_GEMMA2,
    "vocab": 256_000,
    "context_length": 1024,
    "global_every": 1,
    "post_norms": False,
}
_GEMMA3: dict[str, object] = {
    "vocab": 262_144,
    "context_length": 131_072,
    "global_every": 6,
    "window": 1024,
    "qk_norm": True,
    "post_norms": True,
    "global_rope_base": 1_000_000.0,
    "global_rope_factor": 8.0,
}
_GEMMA4: dict[str, object] = {
    "vocab": 262_144,
    "context_length": 262_144,
    "query_scale": 1.0,
    "global_every": 6,
    "window": 1024,
    "final_softcap": 30.0,
    "qk_norm": True,
    "post_norms": True,
    "global_rope_base": 1_000_000.0,
    "global_rope_share": 0.25,
    "global_head_dim": 512,
    "value_norm": True,
    "output_scale": True,
}
_GEMMA4_SMALL = {**_GEMMA4, "context_length": 131_072, "window": 512, "per_layer_width": 256}
_GEMMA4_LARGE = {**_GEMMA4, "global_keys_are_values": True}
_GEMMA3_SMALL = {**_GEMMA3, "context_length": 32_768, "window": 512, "global_rope_factor": 1.0}

#                       L   D     N   K   H    F
RELEASED: tuple[Preset, ...] = (
    _row("gemma-2b", (18, 2048, 8, 1, 256, 16384), **_GEMMA1),
    _row("gemma-7b", (28, 3072, 16, 16, 256, 24576), **_GEMMA1),
    _row("gemma-2-2b", (26, 2304, 8, 4, 256, 9216), **_GEMMA2),
    _row("gemma-2-9b", (42, 3584, 16, 8, 256, 14336), **_GEMMA2),
    _row("gemma-2-27b", (46, 4608, 32, 16, 128, 36864), **_GEMMA2, query_scale=144**-0.5),
    _row("vaultgemma-1b", (26, 1152, 4, 4, 256, 6912), **_VAULT),
    _row("gemma-3-270m", (18, 640, 4, 1, 256, 2048), **_GEMMA3_SMALL),
    _row("gemma-3-1b", (26, 1152, 4, 1, 256, 6912), **_GEMMA3_SMALL),
    _row("gemma-3-4b", (34, 2560, 8, 4, 256, 10240), **_GEMMA3),
    _row("gemma-3-12b", (48, 3840, 16, 8, 256, 15360), **_GEMMA3),
    _row("gemma-3-27b", (62, 5376, 32, 16, 128, 21504), **_GEMMA3, query_scale=168**-0.5),
    _row(
        "gemma-4-e2b",
        (35, 1536, 8, 1, 256, 6144),
        **{**_GEMMA4_SMALL, "global_every": 5, "sharing_layers": 20, "sharing_hidden": 12288},
    ),
    _row("gemma-4-e4b", (42, 2560, 8, 2, 256, 10240), **_GEMMA4_SMALL, sharing_layers=18),
    _row("gemma-4-12b", (48, 3840, 16, 8, 256, 15360), **_GEMMA4_LARGE, global_kv_heads=1),
    _row(
        "gemma-4-26b-a4b",
        (30, 2816, 16, 8, 256, 2112),
        **{**_GEMMA4_LARGE, "global_kv_heads": 2, "experts": Experts(128, 8, 704)},
    ),
    _row("gemma-4-31b", (60, 5376, 32, 16, 256, 21504), **_GEMMA4_LARGE, global_kv_heads=4),
)

# Sources: huggingface/transformers, `models/gemma3` and `models/embedding_gemma2`. The window of
# the first, 512 in its files, reaches 256 to each side, and that of the second 512.
EMBEDDERS: tuple[Preset, ...] = (
    _row(
        "embeddinggemma-300m",
        (24, 768, 3, 1, 256, 1152),
        **{**_GEMMA3_SMALL, "context_length": 2048, "window": 257},
        bidirectional=True,
        dense=(3072, 768),
    ),
    _row(
        "embeddinggemma-2",
        (24, 512, 4, 2, 256, 2048),
        **{**_GEMMA4, "window": 513, "final_softcap": None, "global_rope_share": 1.0},
        global_kv_heads=1,
        per_layer_width=512,
        per_layer_table=False,
        bidirectional=True,
        dense=(768,),
    ),
)


@dataclass(frozen=True)
class Shape:
    """What a checkpoint's own tensors say about the model: sizes, and which norms exist."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    qk_norm: bool
    post_norms: bool
    output_scale: bool = False
    bidirectional: bool = False


def preset_for(shape: Shape, *, capped: bool | None = None) -> Preset:
    """The released model of this shape or, for other sizes, the nearest family at that size.

    The family follows from the norms, which differ between generations: Gemma 3 has q/k norms,
    Gemma 4 a scale of each layer's output too, Gemma 2 has norms after the blocks but no q/k norms,
    Gemma 1 has neither. Nor has VaultGemma: what tells it from Gemma 1 are the caps on its logits,
    which no tensor shows. `capped` is what a file says of them.

    An unknown size takes everything that no tensor shows (windows, caps, rope) from its family's
    smallest model, but for Gemma 4, whose layers differ too much.

    Raises:
        ValueError: the norms of no generation, or sizes that do not fit together or are unknown.
    """
    family = [
        row
        for row in (*RELEASED, *EMBEDDERS)
        if row.bidirectional == shape.bidirectional
        and (row.qk_norm, row.post_norms, row.output_scale)
        == (shape.qk_norm, shape.post_norms, shape.output_scale)
        and capped in (None, row.final_softcap is not None)
    ]
    sizes: dict[str, Any] = {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden": shape.hidden,
    }
    for row in family:
        if all(getattr(row, name) == size for name, size in sizes.items()):
            return replace(row, vocab=shape.vocab)
    if not family:
        raise ValueError("it has the norms of no Gemma generation")
    if shape.output_scale:
        raise ValueError(f"no Gemma 4 of these sizes is known: {sizes}")
    nearest = family[0]
    return replace(
        nearest,
        name=f"{nearest.name.rsplit('-', 1)[0]}-{shape.layers}x{shape.width}",
        query_scale=max(1, shape.head_dim) ** -0.5,
        vocab=shape.vocab,
        qk_norm=shape.qk_norm,
        post_norms=shape.post_norms,
        **sizes,
    )
