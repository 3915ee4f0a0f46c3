"""The tiny models: logits, and files as the library writes them."""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from scripts.goldens.files import GOLDENS, Record, write_json
from testing.hugging_face import (
    hf_config,
    hf_multimodal_config,
    hf_tensors,
    write_hf,
    write_hf_multimodal,
)
from testing.oracle import gemma as oracle
from testing.tiny import tiny_weights

FAMILY_SEED, FAMILY_TOKENS = 20, 45
ORACLE_TOLERANCE = 2e-4  # what rounding in f32 may make of logits that spread over several units


def make_families(_: argparse.Namespace) -> Record:
    """families.npz: each preset's token ids and the library's logits at every position."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    differences: dict[str, float] = {}
    for number, (name, config) in enumerate(oracle.PRESETS.items()):
        rng = np.random.default_rng(FAMILY_SEED + number)
        ids = rng.integers(0, config.vocab, FAMILY_TOKENS)
        weights = tiny_weights(name)
        logits = logits_of(tiny_model(name, hf_config(name, config), config, weights), ids)
        differences[name] = near_oracle(name, config, weights, ids, logits)
        check_epsilon(name, ids)
        check_files(name, weights, ids, logits)
        arrays |= {f"{name}.ids": ids.astype(np.uint16), f"{name}.logits": logits}
    np.savez_compressed(GOLDENS / "families.npz", allow_pickle=False, **arrays)
    return {
        "dtype": "float32, eager attention, CPU",
        "weights": "testing.tiny.tiny_weights(name), seed 0",
        "ids": f"numpy default_rng({FAMILY_SEED} + preset's number).integers(0, vocab)",
        "most_from_oracle": differences,
    }


def tiny_model(
    name: str, fields: Record, config: oracle.OracleConfig, weights: Any
) -> torch.nn.Module:
    """The library's model of a config.json; loading is strict, which proves the names."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**fields), attn_implementation="eager", dtype=torch.float32
    )
    state = {f"model.{key}": torch.from_numpy(v) for key, v in hf_tensors(config, weights).items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    print(f"{name}: {type(model).__name__}")
    return model.eval()


def logits_of(model: Any, ids: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = (
        model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
        .logits[0]
        .numpy()
    )
    return logits


def near_oracle(
    what: str,
    config: oracle.OracleConfig,
    weights: Any,
    ids: npt.NDArray[Any],
    logits: npt.NDArray[np.float32],
) -> float:
    """How far the library is from the NumPy float64 Gemma at most."""
    expected = oracle.logits(config, weights, ids.tolist())
    most = float(np.abs(logits[:, : config.vocab] - expected).max())
    print(f"{what}: at most {most:.1e} from the oracle")
    if most > ORACLE_TOLERANCE:
        raise SystemExit(f"{what}: the two disagree by more than rounding")
    return most


def check_epsilon(name: str, ids: npt.NDArray[Any]) -> None:
    """The presets' epsilon is too small to be seen; a large one must agree, too."""
    config = dataclasses.replace(oracle.PRESETS[name], rms_eps=0.05)
    weights = tiny_weights(name)
    model = tiny_model(name, hf_config(name, config), config, weights)
    near_oracle(f"{name}, eps 0.05", config, weights, ids, logits_of(model, ids))


def check_files(
    name: str, weights: Any, ids: npt.NDArray[Any], logits: npt.NDArray[np.float32]
) -> None:
    """What testing.hugging_face writes, the library loads, to the same bits."""
    for shards in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            write_hf(Path(folder), name, weights, shards=shards)
            model = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            )
            np.testing.assert_array_equal(logits_of(model, ids), logits)


def make_layouts(_: argparse.Namespace) -> Record:
    """hf_layouts.json: config.json, and the tensors' names and shapes, of `save_pretrained`."""
    layouts: Record = {}
    for name, config in oracle.PRESETS.items():
        fields = as_written_today(AutoConfig.for_model(**hf_config(name, config)))
        layouts[name] = saved(tiny_model(name, fields, config, tiny_weights(name)))
    layouts["gemma3-multimodal"] = saved(multimodal_model("gemma3"))
    write_json(GOLDENS / "hf_layouts.json", layouts)
    return {"weights": "not kept, only names and shapes", "dtype": "float32"}


def as_written_today(config: Any) -> Record:
    """Only the fields that the library's class declares: not those of the hub's older files."""
    known = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    return {key: value for key, value in config.to_dict().items() if key in known}


def multimodal_model(name: str) -> Any:
    """The model that sees, from files with the old names and with the newer ones."""
    config, weights = oracle.PRESETS[name], tiny_weights(name)
    ids = np.random.default_rng(FAMILY_SEED).integers(0, config.vocab, FAMILY_TOKENS)
    for prefix in ("language_model.model.", "model.language_model."):
        with tempfile.TemporaryDirectory() as folder:
            write_hf_multimodal(Path(folder), name, weights, prefix=prefix, shards=2)
            model, loading = AutoModelForImageTextToText.from_pretrained(
                folder, attn_implementation="eager", output_loading_info=True
            )
        lost = [key for key in loading["missing_keys"] if "language_model" in key]
        if lost or loading["unexpected_keys"] or loading["mismatched_keys"]:
            raise SystemExit(f"{prefix}: not loaded as they are: {loading}")
        near_oracle(f"{name}, {prefix}", config, weights, ids, logits_of(model.eval(), ids))
    fields = hf_multimodal_config(name)
    for key in ("architectures", "torch_dtype", "transformers_version"):
        del fields[key]
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(**fields), attn_implementation="eager", dtype=torch.float32
    )


def saved(model: Any) -> Record:
    """What `save_pretrained` makes of the model."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            tensors = {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    return {"config": config, "tensors": tensors}
