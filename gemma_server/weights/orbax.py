"""Orbax checkpoints in the flat layout that Kaggle releases Gemma's Flax weights in.

Names and shapes: google-deepmind/gemma, `gemma/gm/ckpts/_checkpoint.py` and `_compat.py`. The tree
is one dict whose keys are slash-joined paths, such as `transformer/layer_0/attn/q_einsum`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import Shape, config_for

Array = npt.NDArray[np.generic]

_NORMS = {
    "pre_attention_norm/scale": "pre_attention_norm/scale",
    "post_attention_norm/scale": "post_attention_norm/scale",
    "pre_feed_forward_norm/scale": "pre_ffw_norm/scale",
    "post_feed_forward_norm/scale": "post_ffw_norm/scale",
    "attention/query_norm/scale": "attn/_query_norm/scale",
    "attention/key_norm/scale": "attn/_key_norm/scale",
}


class OrbaxWeights:
    """A Gemma in a flat Orbax directory, as a `WeightSource`.

    Raises:
        ModelLoadError: the directory is no Orbax checkpoint, is damaged, or holds no Gemma.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _restore(path)
        try:
            self.config = config_for(self._shape())
        except ValueError as error:
            raise ModelLoadError(f"{path}: not a Gemma 1, 2 or 3: {error}") from None

    def read(self, leaf: str) -> Array:
        if leaf == "embedder/embedding":
            return self._tensors["embedder/input_embedding"]
        if leaf == "final_norm/scale":
            return self._tensors["final_norm/scale"]
        layer, _, rest = leaf.partition("/")
        if rest in _NORMS:
            return self._tensors[f"{layer}/{_NORMS[rest]}"]
        match rest:
            case "attention/qkv/kernel":
                return self._qkv(layer)
            case "attention/output/kernel":
                out = self._tensors[f"{layer}/attn/attn_vec_einsum/w"]  # [N, H, D]
                return out.reshape(-1, out.shape[-1]).T
            case "feed_forward/gate_up/kernel":
                gating = self._gating(layer)  # [2, F, D]
                return gating.reshape(-1, gating.shape[-1])
            case "feed_forward/down/kernel":
                return self._of_linear(f"{layer}/mlp/linear").T  # from [F, D]
        raise KeyError(leaf)

    def _qkv(self, layer: str) -> Array:
        """Rows of q, then k, then v: [(N + 2K) * H, D] from [heads, D, H] each."""
        if f"{layer}/attn/qkv_einsum/w" in self._tensors:
            parts = list(self._tensors[f"{layer}/attn/qkv_einsum/w"])
        else:
            parts = [
                self._tensors[f"{layer}/attn/q_einsum/w"],
                *self._tensors[f"{layer}/attn/kv_einsum/w"],
            ]
        return np.concatenate(
            [part.transpose(0, 2, 1).reshape(-1, part.shape[1]) for part in parts]
        )

    def _gating(self, layer: str) -> Array:
        """[2, F, D], which Gemma 1 and the small Gemma 2 store as [2, D, F]."""
        gating = self._of_linear(f"{layer}/mlp/gating_einsum")
        hidden = self._of_linear(f"{layer}/mlp/linear").shape[0]
        return gating if gating.shape[1] == hidden else gating.transpose(0, 2, 1)

    def _of_linear(self, name: str) -> Array:
        """The feed-forward's leaves are bare arrays in some releases, under `w` in others."""
        bare = self._tensors.get(name)
        return bare if bare is not None else self._tensors[f"{name}/w"]

    def _shape(self) -> Shape:
        """The model's sizes, read from its first layer's tensors."""
        layers = {
            int(match[1]) for name in self._tensors if (match := re.match(r"layer_(\d+)/", name))
        }
        if layers != set(range(len(layers))) or not layers:
            raise ModelLoadError(f"{self.path}: not a Gemma in the flat layout: no layer_0 to N")
        try:
            vocab, width = self._tensors["embedder/input_embedding"].shape
            if "layer_0/attn/qkv_einsum/w" in self._tensors:
                _, heads, _, head_dim = self._tensors["layer_0/attn/qkv_einsum/w"].shape
                kv_heads = heads
            else:
                heads, _, head_dim = self._tensors["layer_0/attn/q_einsum/w"].shape
                kv_heads = self._tensors["layer_0/attn/kv_einsum/w"].shape[1]
            hidden = self._of_linear("layer_0/mlp/linear").shape[0]
        except (KeyError, ValueError, IndexError) as error:
            raise ModelLoadError(f"{self.path}: not a Gemma: {error}") from None
        return Shape(
            layers=len(layers),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            vocab=vocab,
            qk_norm=any(name.endswith("/attn/_query_norm/scale") for name in self._tensors),
            post_norms=any(name.endswith("/post_attention_norm/scale") for name in self._tensors),
        )


def _restore(path: Path) -> dict[str, Array]:
    """Every tensor of the checkpoint by its slash-joined name below `transformer/`."""
    import jax
    import orbax.checkpoint as ocp

    try:
        checkpointer = ocp.PyTreeCheckpointer()
        metadata = checkpointer.metadata(path.absolute()).item_metadata
        if metadata is None:
            raise ValueError("no tree of arrays in it")
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        tree = checkpointer.restore(path.absolute(), restore_args=args)
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged directory
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelLoadError(
            f"{path}: not a readable Orbax checkpoint: {reason[0][:300]}"
        ) from None
    return dict(_flat(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            found += _flat(value, name)
        else:
            found.append((name.removeprefix("transformer/"), np.asarray(value)))
    return found
