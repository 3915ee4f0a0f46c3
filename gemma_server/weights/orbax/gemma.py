"""A Gemma in an Orbax checkpoint with DeepMind's names, in any of the layouts it comes in.

Names, shapes and layouts: google-deepmind/gemma, `gemma/gm/ckpts/_checkpoint.py` and `_compat.py`:

    flat      transformer/layer_0/attn/q_einsum . w         Kaggle's releases
    nested    layer_0 . attn . q_einsum . w                 what `save_params` writes
    stacked   transformer/stacked_layers/attention_type_0/attn/q_einsum . w   [layers, ...]
    training  params . layer_0 ..., beside opt_state, step and collections

Joined with slashes they differ in a prefix alone, once stacks are taken apart.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tensorstore as ts

from gemma_server.errors import ModelLoadError
from gemma_server.model.presets import Shape, preset_for
from gemma_server.weights.arrays import Array
from gemma_server.weights.orbax import gemma4
from gemma_server.weights.orbax.container import nbytes, open_arrays, refuse_other_dtypes
from gemma_server.weights.sampling_defaults import SamplingDefaults
from gemma_server.weights.source import EMBEDDING, OWN_TABLE, Rows, plus_one
from gemma_server.weights.stored_table import StoredTable, copied_table

_TABLE = "embedder/input_embedding"
_STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")
_NOT_TEXT = re.compile(
    r"(^|/)(vision_encoder|SigLiP\w*|PatchInput\w*|mm_\w+|audio_\w+|AudioEncoder)/"
)
_NOT_WEIGHTS = re.compile(r"(^|/)(opt_state|collections|ema\w*)/")
_BARE = re.compile(r"/mlp2?/(linear|gating_einsum)$")
_NORMS = {
    "pre_attention_norm/scale": "pre_attention_norm/scale",
    "post_attention_norm/scale": "post_attention_norm/scale",
    "pre_feed_forward_norm/scale": "pre_ffw_norm/scale",
    "post_feed_forward_norm/scale": "post_ffw_norm/scale",
    "attention/query_norm/scale": "attn/_query_norm/scale",
    "attention/key_norm/scale": "attn/_key_norm/scale",
}


class _Stored(NamedTuple):
    """A layer's array, and the name it is stored under, which the layers of a stack share."""

    name: str
    array: ts.TensorStore

    def at(self, index: int) -> "_Stored":
        return _Stored(self.name, self.array[index])


class OrbaxWeights:
    """A Gemma in an Orbax directory, as a `WeightSource`.

    Raises:
        ModelLoadError: the directory is no Orbax checkpoint, is damaged, or holds no Gemma.
    """

    format = "Orbax"
    stop_ids = suppressed_ids = frozenset[int]()  # its files have none, and no template
    sampling = SamplingDefaults()
    chat_template: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = _text_model(path, open_arrays(path))
        refuse_other_dtypes(path, stored)
        self._arrays = _unstacked(stored)
        self._is_gemma4 = any(name.endswith("/skip_scale") for name in self._arrays)
        try:
            self.config = preset_for(self._shape()).config()
        except ValueError as error:
            raise ModelLoadError(f"{path}: no Gemma that is served: {error}") from None
        self.tensors = stored.keys() - self._dropped()
        self.stored = stored_bytes([stored[name] for name in self.tensors])

    @property
    def own_table(self) -> StoredTable | None:
        if OWN_TABLE not in self.config.leaf_shapes:
            return None
        [rows], name = self.rows(OWN_TABLE), gemma4.OUTSIDE_LAYERS[OWN_TABLE].name
        return copied_table(rows.copy, self._arrays[name].array.dtype.numpy_dtype, rows.shape)

    def rows(self, leaf: str) -> Sequence[Rows]:
        if self._is_gemma4:
            return self._gemma4_rows(leaf)
        if leaf == EMBEDDING:
            return [self._as_is(_TABLE)]
        if leaf == "final_norm/scale":
            return [plus_one(self._as_is(leaf))]
        layer, _, rest = leaf.partition("/")
        if rest in _NORMS:
            return [plus_one(self._as_is(f"{layer}/{_NORMS[rest]}"))]
        match rest:
            case "attention/qkv/kernel":
                return self._qkv(f"{layer}/attn")
            case "attention/output/kernel":
                out = self._arrays[f"{layer}/attn/attn_vec_einsum/w"]  # [N, H, D]
                return [_turned(out, (2, 0, 1), columns=2)]
            case "feed_forward/gate_up/kernel":
                return [self._gating(layer)]
            case "feed_forward/down/kernel":
                return [_turned(self._arrays[f"{layer}/mlp/linear/w"], (1, 0))]  # from [F, D]
        raise KeyError(leaf)

    def _dropped(self) -> set[str]:
        """Takes out what no layer reads; the names under which nothing else is stored."""
        dead = gemma4.dead_arrays(self.config) & self._arrays.keys()
        names = {self._arrays.pop(name).name for name in dead}
        return names - {array.name for array in self._arrays.values()}

    def _gemma4_rows(self, leaf: str) -> list[Rows]:
        layer, _, rest = leaf.partition("/")
        if rest == "attention/qkv/kernel":
            return self._gemma4_qkv(layer)
        if leaf in gemma4.OUTSIDE_LAYERS:
            name, axes, columns = gemma4.OUTSIDE_LAYERS[leaf]
        else:
            name, axes, columns = gemma4.places_in(self.config)[rest]
            name = f"{layer}/{name}"
        return [_turned(self._arrays[name], axes, columns=columns) if axes else self._as_is(name)]

    def _gemma4_qkv(self, layer: str) -> list[Rows]:
        """q, and the layer's own k and v, or the one for both."""
        parts = [self._arrays[f"{layer}/attn/q_einsum/w"]]
        index = int(layer.removeprefix("layer_"))
        if (name := gemma4.keys_of(self.config, index)) is not None:
            keys = self._arrays[name]
            apart = not self.config.layers[index].keys_are_values
            parts += [keys.at(0), keys.at(1)] if apart else [keys]
        return [_turned(part, (0, 2, 1)) for part in parts]

    def _as_is(self, name: str) -> Rows:
        stored = self._arrays[name]
        return Rows(stored.name, stored.array.shape, partial(copy_array, stored.array))

    def _qkv(self, attention: str) -> list[Rows]:
        """q, k and v, each [heads, D, H], as rows of [heads * H, D]."""
        name = f"{attention}/qkv_einsum/w"
        if name in self._arrays:
            parts = [self._arrays[name].at(i) for i in range(3)]
        else:
            kv = self._arrays[f"{attention}/kv_einsum/w"]
            parts = [self._arrays[f"{attention}/q_einsum/w"], kv.at(0), kv.at(1)]
        return [_turned(part, (0, 2, 1)) for part in parts]

    def _gating(self, layer: str) -> Rows:
        """[2, F, D] as rows of [2F, D]; Gemma 1 and the small Gemma 2 store [2, D, F]."""
        gating = self._arrays[f"{layer}/mlp/gating_einsum/w"]
        hidden = self._arrays[f"{layer}/mlp/linear/w"].array.shape[0]
        return _turned(gating, (0, 1, 2) if gating.array.shape[1] == hidden else (0, 2, 1))

    def _shape(self) -> Shape:
        """The model's sizes, read from its first layer's tensors."""
        layers = {
            int(match[1]) for name in self._arrays if (match := re.match(r"layer_(\d+)/", name))
        }
        if layers != set(range(len(layers))) or not layers:
            raise ModelLoadError(f"{self.path}: not a Gemma: its layers are not layer_0 to N")
        try:
            vocab, width = self._arrays[_TABLE].array.shape
            if "layer_0/attn/qkv_einsum/w" in self._arrays:
                _, heads, _, head_dim = self._arrays["layer_0/attn/qkv_einsum/w"].array.shape
                kv_heads = heads
            else:
                heads, _, head_dim = self._arrays["layer_0/attn/q_einsum/w"].array.shape
                kv_heads = self._arrays["layer_0/attn/kv_einsum/w"].array.shape[1]
            dense = "mlp2" if "layer_0/mlp2/linear/w" in self._arrays else "mlp"
            hidden = self._arrays[f"layer_0/{dense}/linear/w"].array.shape[0]
        except (KeyError, ValueError, IndexError) as error:
            raise ModelLoadError(f"{self.path}: not a Gemma: {error}") from None
        norms = "/attn/query_norm/scale" if self._is_gemma4 else "/attn/_query_norm/scale"
        return Shape(
            layers=len(layers),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            vocab=vocab,
            qk_norm=any(name.endswith(norms) for name in self._arrays),
            post_norms=any(name.endswith("/post_attention_norm/scale") for name in self._arrays),
            output_scale=self._is_gemma4,
        )


def copy_array(array: ts.TensorStore, out: Array) -> None:
    """Write the array, or its first rows, into `out`, in `out`'s dtype."""
    part = ts.cast(array[: out.shape[0]], ts.dtype(out.dtype))
    ts.array(out).write(part).result()  # shares `out`'s memory


def stored_bytes(arrays: Collection[ts.TensorStore]) -> Counter[str]:
    """Bytes by dtype, uncompressed."""
    stored: Counter[str] = Counter()
    for array in arrays:
        stored[array.dtype.name] += nbytes(array)
    return stored


def _turned(stored: _Stored, axes: tuple[int, ...], *, columns: int = 1) -> Rows:
    """The array with its axes permuted, then read as a matrix.

    The last axis is the matrix's columns or, with `columns` 2, the last two are.
    """
    turned = stored.array.transpose(axes)
    split = len(axes) - columns
    shape = (math.prod(turned.shape[:split]), math.prod(turned.shape[split:]))
    return Rows(
        stored.name, shape, lambda out: copy_array(turned, out.reshape(-1, *turned.shape[1:]))
    )


def _text_model(path: Path, arrays: Mapping[str, ts.TensorStore]) -> dict[str, ts.TensorStore]:
    """The text model's arrays, their names without the layout's prefix."""
    tables = [
        name
        for name in arrays
        if f"/{name}".endswith(f"/{_TABLE}") and not _NOT_WEIGHTS.search(name)
    ]
    if len(tables) != 1:
        what = "no array" if not tables else f"{len(tables)} arrays"
        raise ModelLoadError(f"{path}: not a Gemma: {what} {_TABLE} in it")
    prefix = tables[0].removesuffix(_TABLE)
    return {
        _with_leaf(name.removeprefix(prefix)): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not _NOT_TEXT.search(name) and not _NOT_WEIGHTS.search(name)
    }


def _with_leaf(name: str) -> str:
    """The feed-forward's leaves are bare arrays in some releases, under `w` in others."""
    return f"{name}/w" if _BARE.search(name) else name


def _unstacked(arrays: Mapping[str, ts.TensorStore]) -> dict[str, _Stored]:
    """Every layer's arrays under its own name: stack p holds layers p, p + P, p + 2P, ..."""
    matches = {name: _STACKED.match(name) for name in arrays}
    period = 1 + max((int(match[1]) for match in matches.values() if match), default=0)
    found = {}
    for name, array in arrays.items():
        match = matches[name]
        if match is None:
            found[name] = _Stored(name, array)
            continue
        for index in range(array.shape[0] if array.rank else 0):
            layer = index * period + int(match[1])
            found[f"layer_{layer}/{match[2]}"] = _Stored(name, array[index])
    return found
