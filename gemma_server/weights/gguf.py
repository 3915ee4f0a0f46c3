"""A Gemma in a GGUF file: its architecture from the metadata, its tensors under our names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig, Shape, config_for
from gemma_server.weights.gguf_file import GgufFile

_LAST_PIECE_TYPE = 6  # SentencePiece: normal, unknown, control, user defined, unused, byte


class GgufWeights:
    """A Gemma in a GGUF file, as a `WeightSource`.

    Raises:
        ModelLoadError: the file is damaged or not a Gemma 1, 2 or 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        self.config = _config(self._file)

    @property
    def tokenizer_pieces(self) -> tuple[list[str], list[float], list[int]]:
        """The vocabulary: pieces, scores and SentencePiece's type numbers."""
        metadata = self._file.metadata
        try:
            pieces, scores, types = (
                metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
            )
        except KeyError as error:
            raise ModelLoadError(f"{self.path}: no tokenizer in it ({error})") from None
        try:
            scores, types = np.asarray(scores, np.float64), np.asarray(types, np.int64)
        except (TypeError, ValueError):
            raise ModelLoadError(f"{self.path}: its tokenizer's arrays hold no numbers") from None
        if not (isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)):
            raise ModelLoadError(f"{self.path}: its tokenizer's pieces are no strings")
        if not len(pieces) == scores.size == types.size or types.min(initial=1) < 1:
            raise ModelLoadError(f"{self.path}: its tokenizer's arrays do not fit together")
        if types.max(initial=1) > _LAST_PIECE_TYPE:
            raise ModelLoadError(f"{self.path}: a tokenizer piece is of unknown type")
        return pieces, scores.tolist(), types.tolist()

    def read(self, leaf: str) -> npt.NDArray[np.generic]:
        if leaf == "embedder/embedding":
            return self._file.read("token_embd.weight")
        if leaf == "final_norm/scale":
            return self._file.read("output_norm.weight") - np.float32(1)
        layer, _, rest = leaf.partition("/")
        prefix = f"blk.{layer.removeprefix('layer_')}."
        return _LEAVES[rest](lambda name: self._file.read(f"{prefix}{name}.weight"))


_Read = Callable[[str], npt.NDArray[np.float32]]


def _norm(name: str) -> Callable[[_Read], npt.NDArray[np.float32]]:
    # GGUF stores 1 + w for Gemma 1 to 3 (llama.cpp's converter adds it).
    return lambda read: read(name) - np.float32(1)


def _fused(*names: str) -> Callable[[_Read], npt.NDArray[np.float32]]:
    return lambda read: np.concatenate([read(name) for name in names])


_LEAVES: dict[str, Callable[[_Read], npt.NDArray[np.float32]]] = {
    "attention/qkv/kernel": _fused("attn_q", "attn_k", "attn_v"),
    "attention/output/kernel": _fused("attn_output"),
    "attention/query_norm/scale": _norm("attn_q_norm"),
    "attention/key_norm/scale": _norm("attn_k_norm"),
    "feed_forward/gate_up/kernel": _fused("ffn_gate", "ffn_up"),
    "feed_forward/down/kernel": _fused("ffn_down"),
    "pre_attention_norm/scale": _norm("attn_norm"),
    "post_attention_norm/scale": _norm("post_attention_norm"),
    "pre_feed_forward_norm/scale": _norm("ffn_norm"),
    "post_feed_forward_norm/scale": _norm("post_ffw_norm"),
}


# Which norms each architecture has: on q and k, and behind the blocks.
_NORMS_OF = {"gemma": (False, False), "gemma2": (False, True), "gemma3": (True, True)}


def _config(file: GgufFile) -> GemmaConfig:
    """The architecture from the metadata; what it leaves out, from the released row."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in _NORMS_OF:
        raise ModelLoadError(f"{file.path}: not a Gemma 1, 2 or 3: architecture {architecture!r}")
    number = _Numbers(file, architecture)
    layers = number.whole("block_count")
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if blocks != {str(i) for i in range(min(layers, len(blocks) + 1))}:
        raise ModelLoadError(
            f"{file.path}: {architecture}.block_count is {layers}, but it has {len(blocks)} blocks"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelLoadError(f"{file.path}: no tensor token_embd.weight")
    heads = number.whole("attention.head_count")
    shape = Shape(
        layers=layers,
        width=number.whole("embedding_length"),
        heads=heads,
        kv_heads=number.whole("attention.head_count_kv", heads),
        head_dim=number.whole("attention.key_length", number.whole("embedding_length") // heads),
        hidden=number.whole("feed_forward_length"),
        vocab=file.tensors["token_embd.weight"].shape[0],
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        post_norms="blk.0.post_ffw_norm.weight" in file.tensors,
    )
    if (shape.qk_norm, shape.post_norms) != _NORMS_OF[architecture]:
        raise ModelLoadError(f"{file.path}: its norms are not those of {architecture}")
    try:
        config = config_for(shape)
    except ValueError as error:
        raise ModelLoadError(f"{file.path}: {error}") from None
    return replace(
        config,
        context_length=number.whole("context_length", config.context_length),
        window=config.window and number.whole("attention.sliding_window", config.window),
        attention_softcap=number.real("attn_logit_softcapping", config.attention_softcap),
        final_softcap=number.real("final_logit_softcapping", config.final_softcap),
        global_rope_base=number.real("rope.freq_base", config.global_rope_base),
        global_rope_factor=number.real("rope.scaling.factor", config.global_rope_factor),
        norm_eps=number.real("attention.layer_norm_rms_epsilon", config.norm_eps),
    )


_Default = TypeVar("_Default", float, float | None)


class _Numbers:
    """The architecture's numbers in the metadata, each checked to be a sensible one."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file, self._architecture = file, architecture

    def whole(self, key: str, default: int | None = None) -> int:
        """A count from 1 on; without a default it must be there."""
        value = self._file.metadata.get(f"{self._architecture}.{key}", default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise self._wrong(key, value)
        return value

    def real(self, key: str, default: _Default) -> _Default:
        """A positive number."""
        value = self._file.metadata.get(f"{self._architecture}.{key}", default)
        if value is not None and not (type(value) in (int, float) and 0 < value < 1e12):
            raise self._wrong(key, value)
        checked: _Default = value
        return checked

    def _wrong(self, key: str, value: object) -> ModelLoadError:
        return ModelLoadError(
            f"{self._file.path}: {self._architecture}.{key} is {str(value)[:100]}"
        )
