"""A Gemma in a Hugging Face directory: config.json and safetensors files.

Names and numbers: huggingface/transformers, `models/gemma*/configuration_*.py` and
`modeling_*.py`. The text part of the multimodal Gemma 3 is read like a Gemma of its own.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.model.presets import EMBEDDERS, RELEASED, Preset, Shape
from gemma_server.weights.architecture import (
    config_of,
    count_layers,
    not_served,
    preset_of_family,
    warn_without_dense,
)
from gemma_server.weights.files import INCOMPLETE, PICKLED, PICKLED_WEIGHTS, read_json
from gemma_server.weights.gemma4 import dead_tensors
from gemma_server.weights.hugging_face import declared, gemma4
from gemma_server.weights.hugging_face.container import INDEX, SafetensorsDir, StoredTensor
from gemma_server.weights.hugging_face.embedding2 import (
    HEAD,
    embedding2_config,
    gemma4_s_name,
)
from gemma_server.weights.hugging_face.gemma4 import gemma4_config
from gemma_server.weights.hugging_face.sentence_transformers import WEIGHT, dense_layers
from gemma_server.weights.numbers import Numbers
from gemma_server.weights.source import EMBEDDING, OWN_TABLE, Rows, plus_one
from gemma_server.weights.stored_table import StoredTable

_TABLE = "embed_tokens.weight"
# Tensors outside the text model, or copies of its own: the tied output layer, rotary tables.
_BESIDE = re.compile(
    r"(^|\.)(vision_tower|multi_modal_projector|lm_head|rotary_emb"
    r"|embed_vision|audio_tower|embed_audio|vision_embedder)\."
)
_OUTSIDE_LAYERS = {EMBEDDING: _TABLE, "final_norm/scale": "norm.weight"}
_IN_LAYERS = {
    "attention/qkv/kernel": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/output/kernel": ("self_attn.o_proj",),
    "attention/query_norm/scale": ("self_attn.q_norm",),
    "attention/key_norm/scale": ("self_attn.k_norm",),
    "feed_forward/gate_up/kernel": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward/down/kernel": ("mlp.down_proj",),
    "pre_attention_norm/scale": ("input_layernorm",),
    "post_attention_norm/scale": ("post_attention_layernorm",),
    "pre_feed_forward_norm/scale": ("pre_feedforward_layernorm",),
    "post_feed_forward_norm/scale": ("post_feedforward_layernorm",),
}
# Gemma 1 has one norm between attention and feed-forward, under the name of what it follows.
_GEMMA1_LAYERS = {**_IN_LAYERS, "pre_feed_forward_norm/scale": ("post_attention_layernorm",)}
_FAMILIES = {
    **{"gemma": "gemma", "gemma2": "gemma2", "vaultgemma": "vaultgemma"},
    **dict.fromkeys(("gemma3", "gemma3_text"), "gemma3"),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), "gemma4"),
    **dict.fromkeys(("embedding_gemma2", "embedding_gemma2_text"), "embedding2"),
}
_WITH_TEXT_CONFIG = ("gemma3", "gemma4", "gemma4_unified", "embedding_gemma2")
_MakeConfig = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], GemmaConfig]
_CONFIGS: Mapping[str, _MakeConfig] = {"gemma4": gemma4_config, "embedding2": embedding2_config}
_TANH_GELU = (None, "gelu_pytorch_tanh")
# The defaults of transformers, for a model of no released size.
_DEFAULT_WINDOW, _DEFAULT_HEAD_DIM, _DEFAULT_QUERY_SCALAR = 4096, 256, 256


class HuggingFaceWeights:
    """A Gemma in a Hugging Face directory, as a `WeightSource`.

    Raises:
        ModelLoadError: a file is missing or damaged, or they hold no Gemma that is served.
    """

    format = "Hugging Face"

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_what_is_no_model(path)
        model = _text_config(path / "config.json")
        self._files = SafetensorsDir(path)
        prefix = _prefix(self._files)
        text = [name for name in self._files.tensors if not _BESIDE.search(name)]
        self._files.require_floats(text)
        family = _FAMILIES[model["model_type"]]
        to_ours = gemma4_s_name if family == "embedding2" else str
        self._tensors = {to_ours(name.removeprefix(prefix)): name for name in text}
        if len(self._tensors) < len(text):
            raise ModelLoadError(f"{path}: it has tensors both with {prefix} before and without")
        self._is_gemma4 = family in _CONFIGS
        make_config = _CONFIGS.get(family, _config)
        self.config = make_config(path / "config.json", model, self._shapes())
        self._dense = dense_layers(path) if self.config.bidirectional else []
        if self._dense and self._is_gemma4:
            raise ModelLoadError(f"{path}: dense layers beside an EmbeddingGemma 2")
        if not self._is_gemma4:
            widths = (files.tensors[WEIGHT].shape[0] for files in self._dense)
            self.config = replace(self.config, dense=tuple(widths))
        warn_without_dense(str(path), self.config)
        if self._is_gemma4:
            for dead in dead_tensors(self.config, gemma4.NAMES):
                self._tensors.pop(dead, None)
        self.stop_ids = declared.ids(path, "eos_token_id")
        self.suppressed_ids = declared.ids(path, "suppress_tokens")
        self.sampling = declared.sampling(path)
        self.chat_template = declared.chat_template(path)
        self._outside = {**_OUTSIDE_LAYERS, **gemma4.OUTSIDE_LAYERS}
        if family == "embedding2":
            self._outside["dense_0/kernel"] = HEAD
        self._in_layers = _GEMMA1_LAYERS if model["model_type"] == "gemma" else _IN_LAYERS

    @property
    def tensors(self) -> Collection[str]:
        return [*self._tensors.values(), *map(_dense_name, range(len(self._dense)))]

    @property
    def stored(self) -> Mapping[str, int]:
        stored = self._files.stored(self._tensors.values())
        return sum((files.stored(files.tensors) for files in self._dense), stored)

    @property
    def own_table(self) -> StoredTable | None:
        stored = self._tensors.get(self._outside.get(OWN_TABLE, ""))
        return self._files.table(stored) if stored is not None else None

    def rows(self, leaf: str) -> Sequence[Rows]:
        if leaf.startswith("dense_") and leaf not in self._outside:
            return [self._rows_of_dense(int(leaf.removeprefix("dense_").partition("/")[0]))]
        parts = [self._rows_of(self._tensors[name]) for name in self._stored_names(leaf)]
        if self._is_gemma4 or not leaf.endswith("/scale"):
            return parts
        return list(map(plus_one, parts))

    def _rows_of(self, name: str) -> Rows:
        """A tensor; matrices of experts lie below each other."""
        shape = self._files.tensors[name].shape
        copy = partial(self._files.copy, name)
        if len(shape) != 3:
            return Rows(name, shape, copy)
        return Rows(name, (shape[0] * shape[1], shape[2]), lambda out: copy(out.reshape(shape)))

    def _rows_of_dense(self, index: int) -> Rows:
        files = self._dense[index]
        return Rows(_dense_name(index), files.tensors[WEIGHT].shape, partial(files.copy, WEIGHT))

    def _stored_names(self, leaf: str) -> list[str]:
        if leaf in self._outside:
            return [self._outside[leaf]]
        layer, _, rest = leaf.partition("/")
        at = f"layers.{layer.removeprefix('layer_')}"
        if rest in gemma4.IN_LAYERS:
            return [f"{at}.{gemma4.IN_LAYERS[rest]}"]
        names = self._in_layers[rest]
        if rest == "attention/qkv/kernel":
            names = names[: len(self.config.fused_rows(int(layer.removeprefix("layer_")))[rest])]
        return [f"{at}.{name}.weight" for name in names]

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, StoredTensor] = self._files.tensors
        return {name: found[stored].shape for name, stored in self._tensors.items()}


def _dense_name(index: int) -> str:
    """For a person: all of these tensors have one name, in folders of their own."""
    return f"the dense layer {index}"


def _refuse_what_is_no_model(path: Path) -> None:
    if (path / "adapter_config.json").exists():
        raise ModelLoadError(f"{path}: an adapter; merge it into its base model first")
    if not any(path.glob("*.safetensors")) and not (path / INDEX).exists():
        pickled = any(any(path.glob(pattern)) for pattern in PICKLED)
        why = PICKLED_WEIGHTS if pickled else f"no safetensors files in it; {INCOMPLETE}"
        raise ModelLoadError(f"{path}: {why}")
    if not (path / "config.json").exists():
        raise ModelLoadError(f"{path}: no config.json beside its safetensors files; {INCOMPLETE}")


def _text_config(path: Path) -> Mapping[str, Any]:
    """The numbers of the text model in config.json.

    Raises:
        ModelLoadError: it is not a Gemma that this server can run; the text says why.
    """
    found = read_json(path)
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise not_served(str(path), "model_type", kind)
    text = found.get("text_config", found) if kind in _WITH_TEXT_CONFIG else found
    if not isinstance(text, dict):
        raise ModelLoadError(f"{path}: text_config is no object")
    text = {**text, "model_type": kind}
    for where in (found, text):
        _refuse_what_changes_the_numbers(path, where)
    return text


def _refuse_what_changes_the_numbers(path: Path, found: Mapping[str, Any]) -> None:
    for name, usual in (
        ("quantization_config", None),
        ("attention_bias", False),
        ("tie_word_embeddings", True),
        ("use_bidirectional_attention", False),
    ):
        value = found.get(name, usual)
        if name == "use_bidirectional_attention" and value == "vision":
            continue  # the tokens of an image, of which there are none
        if name in ("use_bidirectional_attention", "tie_word_embeddings") and _embeds(found):
            continue  # it has no output layer
        if value != usual and value is not None:
            raise ModelLoadError(f"{path}: {name} is {str(value)[:100]}: not supported")
    # Gemma 1's files say "gelu" in hidden_act, and its tanh form is meant.
    known = {"hidden_activation": _TANH_GELU, "hidden_act": (*_TANH_GELU, "gelu")}
    for name, activations in known.items():
        if found.get(name) not in activations:
            raise ModelLoadError(f"{path}: {name} is {str(found[name])[:100]}: not supported")


def _embeds(model: Mapping[str, Any]) -> bool:
    """Whether it makes embeddings, as a Gemma 3 does that looks both ways."""
    kind, both_ways = model.get("model_type"), model.get("use_bidirectional_attention")
    return _FAMILIES.get(str(kind)) == "embedding2" or (kind == "gemma3_text" and both_ways is True)


def _prefix(files: SafetensorsDir) -> str:
    """What stands before the text model's names: nothing, `model.`, `language_model.model.`."""
    tables = [name for name in files.tensors if name == _TABLE or name.endswith(f".{_TABLE}")]
    if len(tables) == 1:
        return tables[0].removesuffix(_TABLE)
    what = "no tensor" if not tables else f"{len(tables)} tensors"
    raise ModelLoadError(f"{files.path}: {what} {_TABLE} in its safetensors files")


def _config(path: Path, model: Mapping[str, Any], shapes: Mapping[str, Any]) -> GemmaConfig:
    """The architecture: sizes from the tensors, checked against config.json; the rest from that."""
    number = Numbers(model, str(path))
    family = _FAMILIES[model["model_type"]]
    shape = replace(_shape(path, number, shapes), bidirectional=_embeds(model))
    row = preset_of_family(str(path), family, shape)
    scale = row.query_scale
    if row.name not in {released.name for released in (*RELEASED, *EMBEDDERS)}:
        scale = scale if family == "gemma" else _DEFAULT_QUERY_SCALAR**-0.5
        row = replace(row, window=row.window and _DEFAULT_WINDOW)
    if family == "vaultgemma":  # every other layer, where no file says it
        row = replace(row, global_every=2)
    if "query_pre_attn_scalar" in model:
        scale = number.real("query_pre_attn_scalar", 1.0) ** -0.5
    preset = replace(
        row,
        context_length=number.whole("max_position_embeddings", row.context_length),
        query_scale=scale,
        window=row.window and _window(number, row),
        attention_softcap=number.real_or_none("attn_logit_softcapping", row.attention_softcap),
        final_softcap=number.real_or_none("final_logit_softcapping", row.final_softcap),
        norm_eps=number.real("rms_norm_eps", row.norm_eps),
    )
    preset = _with_local_layers(number, model, preset)
    return config_of(str(path), _with_rope(path, model, preset))


def _window(number: Numbers, row: Preset) -> int | None:
    """Of a model that looks both ways the file has what its window spans on both sides."""
    if row.bidirectional:
        return number.whole("sliding_window", 512) // 2 + 1
    return number.whole("sliding_window", row.window)


def _shape(path: Path, number: Numbers, shapes: Mapping[str, Any]) -> Shape:
    head_dim = number.whole("head_dim", _DEFAULT_HEAD_DIM)
    try:
        vocab, width = shapes[_TABLE]
        q_rows, _ = shapes["layers.0.self_attn.q_proj.weight"]
        k_rows, _ = shapes["layers.0.self_attn.k_proj.weight"]
        hidden, _ = shapes["layers.0.mlp.gate_proj.weight"]
    except (KeyError, ValueError) as error:
        raise ModelLoadError(f"{path.parent}: not a Gemma: {error}") from None
    if q_rows % head_dim or k_rows % head_dim:
        raise number.wrong("head_dim", f"its heads have {q_rows} and {k_rows} rows in all")
    sizes = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": q_rows // head_dim,
        "num_key_value_heads": k_rows // head_dim,
    }
    for name, size in sizes.items():
        if number.whole(name, size) != size:
            raise number.wrong(name, f"its tensors have {size}")
    layers = (name.split(".")[1] for name in shapes if name.startswith("layers."))
    return Shape(
        layers=count_layers(number, "num_hidden_layers", layers),
        width=width,
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=head_dim,
        hidden=hidden,
        vocab=vocab,
        qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
        post_norms="layers.0.post_feedforward_layernorm.weight" in shapes,
    )


def _with_local_layers(number: Numbers, model: Mapping[str, Any], preset: Preset) -> Preset:
    """The preset with the file's pattern: a period, or the type of each layer."""
    types = model.get("layer_types")
    if types is None or preset.window is None:
        name = number.first_of("_sliding_window_pattern", "sliding_window_pattern")
        return replace(preset, global_every=number.whole(name, preset.global_every))
    if not isinstance(types, list) or len(types) != preset.layers:
        raise number.wrong("layer_types", f"it has {preset.layers} layers")
    if not all(kind in ("full_attention", "sliding_attention") for kind in types):
        raise number.wrong("layer_types", "only full_attention and sliding_attention are known")
    return replace(preset, local_layers=tuple(kind == "sliding_attention" for kind in types))


def _with_rope(path: Path, model: Mapping[str, Any], preset: Preset) -> Preset:
    """The preset with the file's rotary bases and factor; values that it lacks stay as they are."""
    everywhere, local = _rope_parameters(path, model)
    number, local_number = Numbers(everywhere, str(path)), Numbers(local, str(path))
    base = number.real("rope_theta", preset.global_rope_base)
    if local_number.real("factor", 1.0) != 1.0:
        raise local_number.wrong("factor", "local layers cannot be scaled")
    return replace(
        preset,
        global_rope_base=base,
        local_rope_base=local_number.real(
            "rope_theta", preset.local_rope_base if preset.qk_norm else base
        ),
        global_rope_factor=number.real("factor", preset.global_rope_factor),
    )


def _rope_parameters(
    path: Path, model: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The parameters of global and of local layers, each with rope_theta and factor if given.

    transformers 5 writes `rope_parameters`, by kind of layer where there are two; transformers 4
    `rope_theta`, `rope_local_base_freq`, and `rope_scaling`, which is null for no scaling. Files
    have all of these at once, and TranslateGemma's the newer form under the older name.
    """
    said, scaling = model.get("rope_parameters"), model.get("rope_scaling")
    if said is None and isinstance(scaling, dict) and "full_attention" in scaling:
        said, scaling = scaling, None
    parts = [said or {}, {}, scaling or {}]
    if isinstance(said, dict):
        parts[:2] = said.get("full_attention", said) or {}, said.get("sliding_attention") or {}
    if not all(isinstance(part, dict) for part in parts):
        raise ModelLoadError(f"{path}: its rope parameters are no objects")
    everywhere, local, more = parts
    older = {"factor": 1.0} if said is not None or "rope_scaling" in model else {}
    older |= {"rope_theta": model["rope_theta"]} if "rope_theta" in model else {}
    name = "rope_local_base_freq"
    older_local = {"rope_theta": model[name]} if name in model else {}
    return _scaled(path, older | everywhere | more), _scaled(path, older_local | local)


def _scaled(path: Path, part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a known kind; the kind "default" does not heed a factor.

    Raises:
        ModelLoadError: the kind is another one.
    """
    kind = part.get("rope_type", part.get("type"))
    if kind not in (None, "default", "linear"):
        raise ModelLoadError(f"{path}: rope_type {str(kind)[:100]!r} is not supported")
    return {**part, "factor": 1.0} if kind == "default" else part
