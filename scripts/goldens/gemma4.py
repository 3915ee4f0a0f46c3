"""The tiny Gemma 4s: logits of the library, and its strict loading of what tests write."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from scripts.goldens.files import GOLDENS, Record
from scripts.goldens.tiny import FAMILY_SEED, FAMILY_TOKENS, ORACLE_TOLERANCE, logits_of
from testing.gemma4 import gemma4_weights, write_gemma4_hf
from testing.models import NAMES
from testing.oracle import gemma4 as oracle


def make_gemma4(_: argparse.Namespace) -> Record:
    """gemma4.npz: each preset's token ids and the library's logits at every position."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    differences: dict[str, float] = {}
    for number, name in enumerate(name for name in NAMES if name in oracle.PRESETS):
        config = oracle.PRESETS[name]
        ids = np.random.default_rng(FAMILY_SEED + number).integers(0, config.vocab, FAMILY_TOKENS)
        logits = logits_of(_loaded(name), ids)
        expected = oracle.logits(config, gemma4_weights(name), ids.tolist())
        differences[name] = float(np.abs(logits - expected).max())
        print(f"{name}: at most {differences[name]:.1e} from the oracle")
        if differences[name] > ORACLE_TOLERANCE:
            raise SystemExit(f"{name}: the two disagree by more than rounding")
        arrays |= {f"{name}.ids": ids.astype(np.uint16), f"{name}.logits": logits}
    np.savez_compressed(GOLDENS / "gemma4.npz", allow_pickle=False, **arrays)
    return {
        "dtype": "float32, eager attention, CPU",
        "weights": "testing.gemma4.gemma4_weights(name)",
        "ids": f"numpy default_rng({FAMILY_SEED} + preset's number).integers(0, vocab)",
        "most_from_oracle": differences,
    }


def _loaded(name: str) -> Any:
    """The library's model of the files that tests write; nothing may be missing or left over."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_gemma4_hf(Path(folder), name, shards=2)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    wrong = [loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    if any(wrong):
        raise SystemExit(f"{name}: not loaded as it is: {wrong}")
    return model.eval()
