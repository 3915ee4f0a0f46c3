"""A Gemma in a GGUF file: its architecture from the metadata, its tensors by leaf."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.model.presets import Preset, Shape
from gemma_server.text.sentencepiece_model import PieceType, is_byte, scores_of, types_with_newlines
from gemma_server.weights.architecture import (
    config_of,
    count_layers,
    not_served,
    preset_of_family,
    warn_without_dense,
)
from gemma_server.weights.gemma4 import dead_tensors
from gemma_server.weights.gguf import embedding2, gemma4
from gemma_server.weights.gguf.blocks import EXACT_IN_BLOCKS
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.numbers import Numbers
from gemma_server.weights.sampling_defaults import SamplingDefaults, read_sampling
from gemma_server.weights.source import EMBEDDING, OWN_TABLE, Rows
from gemma_server.weights.stored_table import StoredTable

_NOT_TEXT = ("v.", "mm.", "a.")  # prefixes of the vision tower, its projector, the audio tower
# What ends an answer, a turn, a message to a tool; Ollama's converter writes the list.
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids")
_NO_SCORE = -1000.0
_LAST_PIECE_TYPE = 6  # SentencePiece: normal, unknown, control, user defined, unused, byte


class GgufWeights:
    """A Gemma in a GGUF file, as a `WeightSource`.

    Raises:
        ModelLoadError: the file is damaged or holds no Gemma that is served.
    """

    format = "GGUF"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        self.tensors = [name for name in self._file.tensors if not name.startswith(_NOT_TEXT)]
        family = _family(self._file)
        _refuse_split(self._file)
        _refuse_what_changes_the_numbers(self._file, family)
        self._outside = _OUTSIDE_BLOCKS
        if family == embedding2.ARCHITECTURE:
            self.config = embedding2.embedding2_config(self._file)
            self._outside = {**_OUTSIDE_BLOCKS, "dense_0/kernel": embedding2.HEAD}
        elif family == "gemma4":
            self.config = gemma4.gemma4_config(self._file)
            beside = dead_tensors(self.config, gemma4.NAMES) | gemma4.BESIDE
            self.tensors = [name for name in self.tensors if name not in beside]
        else:
            self.config = _config(self._file, family, self.tensors)
        warn_without_dense(str(path), self.config)
        self._file.refuse_undecodable(self.tensors)
        number = Numbers(self._file.metadata, str(path), "tokenizer.ggml.")
        self.stop_ids = frozenset[int]().union(*map(number.ids, _STOPS))
        self.suppressed_ids = number.ids("suppress_tokens")
        self.sampling = _sampling(self._file)
        self.chat_template = _chat_template(self._file)

    @property
    def stored(self) -> Mapping[str, int]:
        stored: Counter[str] = Counter()
        for name in self.tensors:
            tensor = self._file.tensors[name]
            stored[tensor.type_name] += tensor.nbytes
        return stored

    @property
    def tokenizer_pieces(self) -> tuple[list[str], list[float], list[int]]:
        """The vocabulary: pieces, scores and SentencePiece's type numbers. Where the file has the
        merges, these make the scores: llama.cpp's converter writes -1000 for all pieces of such a
        tokenizer."""
        metadata = self._file.metadata
        try:
            pieces, scores, types = (
                metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
            )
        except KeyError as error:
            raise ModelLoadError(f"{self.path}: no tokenizer in it ({error})") from None
        try:
            if isinstance(merges := metadata.get("tokenizer.ggml.merges"), list):
                scores = scores_of(pieces, merges)
            scores, types = np.asarray(scores, np.float64), np.asarray(types, np.int64)
            if scores.size and (scores == _NO_SCORE).all():
                raise ModelLoadError(f"{self.path}: its tokenizer has neither scores nor merges")
        except (TypeError, ValueError, OverflowError):
            raise ModelLoadError(f"{self.path}: its tokenizer's arrays hold no numbers") from None
        if not (isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)):
            raise ModelLoadError(f"{self.path}: its tokenizer's pieces are no strings")
        if not len(pieces) == scores.size == types.size or types.min(initial=1) < 1:
            raise ModelLoadError(f"{self.path}: its tokenizer's arrays do not fit together")
        if types.max(initial=1) > _LAST_PIECE_TYPE:
            raise ModelLoadError(f"{self.path}: a tokenizer piece is of unknown type")
        # Ollama's converter takes the bytes for text.
        kinds = [
            PieceType.BYTE if is_byte(piece) else kind
            for piece, kind in zip(pieces, types.tolist(), strict=True)
        ]
        merged = isinstance(merges, list)
        return pieces, scores.tolist(), kinds if merged else types_with_newlines(pieces, kinds)

    @property
    def own_table(self) -> StoredTable | None:
        stored = self._outside[OWN_TABLE] in self.tensors
        return self._file.table(self._outside[OWN_TABLE]) if stored else None

    def rows(self, leaf: str) -> Sequence[Rows]:
        names = self._stored_names(leaf)
        if leaf.endswith(gemma4.FUSED_EXPERTS) and names[0] not in self._file.tensors:
            return self._experts_apart(names[0])
        return [self._rows_of(name) for name in names]

    def _experts_apart(self, fused: str) -> list[Rows]:
        """Each expert's gate and up, from tensors that have all gates and all ups."""
        apart = [fused.replace("gate_up_exps", f"{part}_exps") for part in ("gate", "up")]
        shape = self._file.tensors[apart[0]].shape
        if len(shape) != 3:
            return list(map(self._rows_of, apart))  # which do not fit, and are refused
        count, rows, columns = shape
        return [
            Rows(
                name,
                (rows, columns),
                partial(self._file.copy, name, first=expert * rows),
                partial(self._file.copy_blocks, name, first=expert * rows)
                if self._file.tensors[name].type_name in EXACT_IN_BLOCKS
                else None,
            )
            for expert in range(count)
            for name in apart
        ]

    def _rows_of(self, name: str) -> Rows:
        """A tensor; matrices of experts lie below each other."""
        tensor = self._file.tensors[name]
        exact = tensor.type_name in EXACT_IN_BLOCKS
        copy_blocks = partial(self._file.copy_blocks, name) if exact else None
        *rows, columns = tensor.shape
        shape = (math.prod(rows), columns) if rows else tensor.shape
        return Rows(name, shape, partial(self._file.copy, name), copy_blocks)

    def _stored_names(self, leaf: str) -> list[str]:
        """The tensors that a leaf is made of. Names: ggml-org/llama.cpp,
        gguf-py/gguf/constants.py."""
        if leaf in self._outside:
            return [self._outside[leaf]]
        layer, _, rest = leaf.partition("/")
        block = layer.removeprefix("layer_")
        if rest in gemma4.IN_BLOCKS:
            return [f"blk.{block}.{gemma4.IN_BLOCKS[rest]}"]
        names = _IN_BLOCKS[rest]
        if rest == "attention/qkv/kernel":
            names = names[: len(self.config.fused_rows(int(block))[rest])]
        return [f"blk.{block}.{name}.weight" for name in names]


def _sampling(file: GgufFile) -> SamplingDefaults:
    """From the keys of llama.cpp's converter, as the decimals that became these float32."""
    number = Numbers(file.metadata, str(file.path), "general.sampling.")
    found = read_sampling(number, "temp", "top_k", "top_p")
    return SamplingDefaults(_short(found.temperature), found.top_k, _short(found.top_p))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _chat_template(file: GgufFile) -> str | None:
    key = "tokenizer.chat_template"
    template = file.metadata.get(key)
    if template is not None and not isinstance(template, str):
        raise ModelLoadError(f"{file.path}: {key} is {template!r:.100}, no text")
    return template or None


_OUTSIDE_BLOCKS = {
    EMBEDDING: "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "dense_0/kernel": "dense_2.weight",  # by the folders of sentence-transformers
    "dense_1/kernel": "dense_3.weight",
    **gemma4.OUTSIDE_BLOCKS,
}
_IN_BLOCKS = {
    "attention/qkv/kernel": ("attn_q", "attn_k", "attn_v"),
    "attention/output/kernel": ("attn_output",),
    "attention/query_norm/scale": ("attn_q_norm",),
    "attention/key_norm/scale": ("attn_k_norm",),
    "feed_forward/gate_up/kernel": ("ffn_gate", "ffn_up"),
    "feed_forward/down/kernel": ("ffn_down",),
    "pre_attention_norm/scale": ("attn_norm",),
    "post_attention_norm/scale": ("post_attention_norm",),
    "pre_feed_forward_norm/scale": ("ffn_norm",),
    "post_feed_forward_norm/scale": ("post_ffw_norm",),
}

_FAMILIES = ("gemma", "gemma2", "gemma3", "gemma4")
# llama.cpp's name, and that of Ollama's converter.
_GLOBAL_BASE = ("rope.freq_base", "rope.global.freq_base")
_LOCAL_BASE = ("rope.freq_base_swa", "rope.local.freq_base")
# What is the same in every Gemma of these families: another value is another model.
_ALWAYS = {"attention.causal": True, "pooling_type": 0, "expert_count": 0}
# And in those that embed texts, where 1 is the mean. Their window spans both sides of a token.
_ALWAYS_EMBEDDING = {"attention.causal": False, "pooling_type": 1, "expert_count": 0}
_EMBEDDING = "gemma-embedding"
_SPAN = 512


def _family(file: GgufFile) -> str:
    family = file.metadata.get("general.architecture")
    known = (*_FAMILIES, _EMBEDDING, embedding2.ARCHITECTURE)
    if not isinstance(family, str) or family not in known:
        raise not_served(str(file.path), "architecture", family)
    return family


def _config(file: GgufFile, family: str, tensors: Collection[str]) -> GemmaConfig:
    """The architecture from the metadata; values that it lacks come from the released row."""
    number = Numbers(file.metadata, str(file.path), f"{family}.")
    shape, embeds = _shape(file, number, tensors), family == _EMBEDDING
    shape = replace(shape, bidirectional=embeds)
    preset = preset_of_family(str(file.path), "gemma3" if embeds else family, shape)
    preset = replace(
        preset,
        dense=_dense(file) if embeds else (),
        context_length=number.whole("context_length", preset.context_length),
        window=preset.window and _window(number, preset.window, embeds),
        attention_softcap=number.real_or_none("attn_logit_softcapping", preset.attention_softcap),
        final_softcap=number.real_or_none("final_logit_softcapping", preset.final_softcap),
        global_rope_base=number.real(number.first_of(*_GLOBAL_BASE), preset.global_rope_base),
        local_rope_base=_local_rope_base(number, preset),
        global_rope_factor=_rope_factor(file, number, family, preset),
        norm_eps=number.real("attention.layer_norm_rms_epsilon", preset.norm_eps),
    )
    return config_of(str(file.path), _with_local_layers(number, preset))


def _window(number: Numbers, usual: int, embeds: bool) -> int:
    name = "attention.sliding_window"
    return number.whole(name, _SPAN) // 2 + 1 if embeds else number.whole(name, usual)


def _dense(file: GgufFile) -> tuple[int, ...]:
    """The widths of the layers behind the mean; the first published files have none."""
    found = (file.tensors.get(_OUTSIDE_BLOCKS[f"dense_{index}/kernel"]) for index in (0, 1))
    return tuple(tensor.shape[0] for tensor in found if tensor is not None)


def _refuse_split(file: GgufFile) -> None:
    count = file.metadata.get("split.count", 0)  # 0 is what joining leaves
    if type(count) is not int or count > 1:
        raise ModelLoadError(
            f"{file.path}: one of {str(count)[:20]} parts; join them: llama-gguf-split --merge"
        )


def _refuse_what_changes_the_numbers(file: GgufFile, family: str) -> None:
    embeds = family in (_EMBEDDING, embedding2.ARCHITECTURE)
    for name, usual in (_ALWAYS_EMBEDDING if embeds else _ALWAYS).items():
        if family == "gemma4" and name == "expert_count":
            continue
        value = file.metadata.get(f"{family}.{name}", usual)
        if type(value) is not type(usual) or value != usual:
            raise ModelLoadError(f"{file.path}: {family}.{name} is {value!r:.100}: not supported")


def _shape(file: GgufFile, number: Numbers, tensors: Collection[str]) -> Shape:
    if "token_embd.weight" not in tensors:
        raise ModelLoadError(f"{file.path}: no tensor token_embd.weight")
    width, heads = number.whole("embedding_length"), number.whole("attention.head_count")
    head_dim = number.whole("attention.key_length", max(1, width // heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        if number.whole(name, head_dim) != head_dim:
            raise number.wrong(name, f"only that of the keys, {head_dim}, is supported")
    blocks = (name.split(".")[1] for name in tensors if name.startswith("blk."))
    return Shape(
        layers=count_layers(number, "block_count", blocks),
        width=width,
        heads=heads,
        kv_heads=number.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden=number.whole("feed_forward_length"),
        vocab=file.tensors["token_embd.weight"].shape[0],
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        post_norms="blk.0.post_ffw_norm.weight" in tensors,
    )


def _with_local_layers(number: Numbers, preset: Preset) -> Preset:
    """The preset with the file's pattern: a period, or a flag for each layer, true for local."""
    name = "attention.sliding_window_pattern"
    flags = number.flags(name)
    if flags is None:
        return replace(preset, global_every=number.whole(name, preset.global_every))
    if len(flags) != preset.layers:
        raise number.wrong(name, f"{len(flags)} flags, but it has {preset.layers} layers")
    return replace(preset, local_layers=flags)


def _local_rope_base(number: Numbers, preset: Preset) -> float:
    """In newer files; implied in older ones."""
    if preset.qk_norm:  # the only generation whose layers have two bases
        return number.real(number.first_of(*_LOCAL_BASE), preset.local_rope_base)
    return number.real(number.first_of(*_GLOBAL_BASE), preset.local_rope_base)


def _rope_factor(file: GgufFile, number: Numbers, family: str, preset: Preset) -> float:
    scaling = file.metadata.get(f"{family}.rope.scaling.type", "linear")
    if isinstance(scaling, str) and scaling == "none":
        return 1.0
    if not isinstance(scaling, str) or scaling != "linear":
        raise number.wrong("rope.scaling.type", "only linear is supported")
    factor = number.first_of("rope.scaling.factor", "rope.scale_linear")  # its former name
    return number.real(factor, preset.global_rope_factor)
