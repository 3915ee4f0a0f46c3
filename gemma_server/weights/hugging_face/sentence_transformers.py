"""What sentence-transformers' files beside a model say: how a text's tokens become its embedding.

Names: UKPLab/sentence-transformers, its modules Pooling, Dense and Normalize.
"""

import json
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.weights.files import INCOMPLETE, read_json, read_text
from gemma_server.weights.hugging_face.container import SafetensorsDir

MODULES = "modules.json"
WEIGHT = "linear.weight"
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
_NO_ACTIVATION = (None, "torch.nn.modules.linear.Identity")
_MEAN = "pooling_mode_mean_tokens"


def dense_layers(path: Path) -> list[SafetensorsDir]:
    """The dense layers behind the mean of a text's tokens, in their order; none without the file
    that lists them.

    Raises:
        ModelLoadError: the model makes embeddings in another way, or a file is missing or damaged.
    """
    if not (path / MODULES).is_file():
        return []
    modules = _modules(path / MODULES)
    kinds = [kind for kind, _ in modules]
    known = set(kinds) <= set(_ORDER) and kinds == sorted(kinds, key=_ORDER.index)
    if not known or kinds[:2] != ["Transformer", "Pooling"]:
        raise ModelLoadError(f"{path / MODULES}: {', '.join(kinds)[:200]}: not supported")
    for kind, folder in modules:
        if kind == "Pooling":
            _check_pooling(path / folder / "config.json")
    return [_dense_layer(path / folder) for kind, folder in modules if kind == "Dense"]


def _modules(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module."""
    try:
        found = json.loads(read_text(path))
        modules = [(str(one["type"]).rpartition(".")[2], one["path"]) for one in found]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelLoadError(f"{path}: not a list of modules; {INCOMPLETE}") from None
    for _, folder in modules:
        if not isinstance(folder, str) or (folder and Path(folder).name != folder):
            raise ModelLoadError(f"{path}: {str(folder)[:100]!r} is no folder's name")
    return modules


def _check_pooling(path: Path) -> None:
    found = read_json(path)
    modes = {name for name, value in found.items() if name.startswith("pooling_mode_") and value}
    if not modes <= {_MEAN} or found.get("pooling_mode", "mean") != "mean":
        raise ModelLoadError(f"{path}: only the mean of all tokens is supported")


def _dense_layer(path: Path) -> SafetensorsDir:
    found: dict[str, Any] = read_json(path / "config.json")
    if found.get("activation_function") not in _NO_ACTIVATION or found.get("bias"):
        raise ModelLoadError(f"{path}: a bias or an activation is not supported")
    files = SafetensorsDir(path)
    files.require_floats(files.tensors)
    if set(files.tensors) != {WEIGHT} or len(files.tensors[WEIGHT].shape) != 2:
        names = ", ".join(files.tensors)[:200]
        raise ModelLoadError(f"{path}: it has {names or 'no tensors'}, not one {WEIGHT}")
    return files
