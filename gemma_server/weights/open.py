"""Which kind of checkpoint a path is."""

from pathlib import Path

from gemma_server.errors import ModelLoadError
from gemma_server.weights.converted import DESCRIPTION, ConvertedWeights
from gemma_server.weights.gguf import GgufWeights
from gemma_server.weights.hugging_face import HuggingFaceWeights
from gemma_server.weights.orbax import OrbaxWeights
from gemma_server.weights.orbax_arrays import is_orbax
from gemma_server.weights.source import WeightSource


def open_weights(path: Path) -> WeightSource:
    """Open the checkpoint at `path`, or the only one directly below it.

    Raises:
        ModelLoadError: there is none, or it is damaged, or no Gemma 1, 2 or 3.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            raise ModelLoadError(f"{path}: name its directory, which has config.json too")
        return GgufWeights(path)
    if not path.is_dir():
        raise ModelLoadError(f"{path}: no such file or directory")
    if (opened := _open_directory(path)) is not None:
        return opened
    below = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_checkpoint(child)]
    if len(below) == 1:
        return open_weights(below[0])
    raise ModelLoadError(f"{path}: {_what_is_there(path, below)}")


def _open_directory(path: Path) -> WeightSource | None:
    if (path / DESCRIPTION).is_file():
        return ConvertedWeights(path)
    if is_orbax(path):
        return OrbaxWeights(path)
    if (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return HuggingFaceWeights(path)
    return None


def _is_checkpoint(path: Path) -> bool:
    return is_orbax(path) or any((path / name).is_file() for name in (DESCRIPTION, "config.json"))


def _what_is_there(path: Path, below: list[Path]) -> str:
    if below:
        return f"several checkpoints in it, name one: {', '.join(each.name for each in below)}"
    if files := sorted(path.glob("*.gguf")):
        return f"name one of its GGUF files: {', '.join(each.name for each in files)}"
    return "no checkpoint in it: no Orbax manifest.ocdbt, no config.json with safetensors files"
