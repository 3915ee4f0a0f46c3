"""The tiny models that embed texts: vectors of the library and sentence-transformers' modules."""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel

from scripts.goldens.files import GOLDENS, Record
from testing.embedding import NAMES, TOLERANCE, oracle_embedding, write_embedding_hf

SEED = 900
LENGTHS = (1, 6, 7, 8, 14, 15, 40, 64, 300)  # around what the windows reach, and in several blocks


def make_embedding(_: argparse.Namespace) -> Record:
    """embedding.npz: ids of texts and their embeddings, made in one padded batch."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    differences: dict[str, float] = {}
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(SEED + number)
        texts = [rng.integers(4, 300, length) for length in LENGTHS]
        vectors = _embedded(name, texts)
        expected = [oracle_embedding(name, ids.tolist()) for ids in texts]
        differences[name] = float(np.abs(vectors - np.array(expected)).max())
        print(f"{name}: at most {differences[name]:.1e} from the oracle")
        if differences[name] > TOLERANCE:
            raise SystemExit(f"{name}: the two disagree by more than rounding")
        arrays |= {
            f"{name}.ids": np.concatenate(texts).astype(np.uint16),
            f"{name}.lengths": np.array(LENGTHS, np.uint16),
            f"{name}.embeddings": vectors,
        }
    np.savez_compressed(GOLDENS / "embedding.npz", allow_pickle=False, **arrays)
    return {
        "sentence_transformers": version("sentence-transformers"),
        "dtype": "float32, eager attention, CPU",
        "weights": "testing.embedding",
        "ids": f"numpy default_rng({SEED} + model's number).integers(4, 300)",
        "most_from_oracle": differences,
    }


def _embedded(name: str, texts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
    """What the library makes of the files that tests write; nothing may be missing or left over."""
    from sentence_transformers import models  # needed for this part alone

    longest = max(map(len, texts))
    ids = torch.tensor(np.array([np.pad(text, (0, longest - len(text))) for text in texts]))
    mask = torch.tensor([[int(at < len(text)) for at in range(longest)] for text in texts])
    with tempfile.TemporaryDirectory() as folder:
        path = write_embedding_hf(Path(folder), name)
        model, loading = AutoModel.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        wrong = [loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")]
        if any(wrong):
            raise SystemExit(f"{name}: not loaded as it is: {wrong}")
        modules = json.loads((path / "modules.json").read_text())[1:]
        behind = [
            getattr(models, module["type"].rpartition(".")[2]).load(str(path / module["path"]))
            for module in modules
        ]
    hidden = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    features = {"token_embeddings": hidden, "attention_mask": mask}
    for module in behind:
        features = module(features)
    vectors: npt.NDArray[np.float32] = features["sentence_embedding"].numpy()
    return vectors
