"""Which kind of checkpoint a path is."""

from collections.abc import Callable
from pathlib import Path

from gemma_server.errors import ModelLoadError
from gemma_server.weights.converted import DESCRIPTION, ConvertedWeights
from gemma_server.weights.files import PICKLED, PICKLED_WEIGHTS
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from gemma_server.weights.orbax.container import is_orbax
from gemma_server.weights.orbax.gemma import OrbaxWeights
from gemma_server.weights.source import WeightSource


def open_weights(path: Path) -> WeightSource:
    """Open the checkpoint at `path`, or the only one in the directories below it, two levels deep.

    Raises:
        ModelLoadError: there is none, or it is damaged, or no Gemma that is served.
    """
    try:
        return _open(path)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from None


def _open(path: Path) -> WeightSource:
    if not path.is_dir():
        path.stat()  # raises if there is nothing
        _refuse_other_files(path)
        return GgufWeights(path)
    if (opener := _opener(path)) is not None:
        return opener(path)
    found = _below(path, "*")
    found += [child for child in _below(path, "*/*") if child.parent not in found]
    if len(found) == 1:
        return _open(found[0])
    raise ModelLoadError(f"{path}: {_what_is_there(path, found)}")


def _refuse_other_files(path: Path) -> None:
    if path.suffix in (".safetensors", ".json", ".model"):
        raise ModelLoadError(f"{path}: name its directory, which has the other files too")
    if any(path.match(pattern) for pattern in PICKLED):
        raise ModelLoadError(f"{path}: {PICKLED_WEIGHTS}")
    if path.suffix in (".tar", ".gz", ".tgz", ".zip"):
        raise ModelLoadError(f"{path}: an archive; extract it and name what was in it")


def _below(path: Path, pattern: str) -> list[Path]:
    return [child for child in sorted(path.glob(pattern)) if child.is_dir() and _opener(child)]


def _opener(directory: Path) -> Callable[[Path], WeightSource] | None:
    """What opens the checkpoint in a directory; None if there is none."""
    if (directory / DESCRIPTION).is_file():
        return ConvertedWeights
    if is_orbax(directory):
        return OrbaxWeights
    if (directory / "config.json").is_file() or any(directory.glob("*.safetensors")):
        return HuggingFaceWeights
    return None


def _what_is_there(path: Path, found: list[Path]) -> str:
    if found:
        names = ", ".join(str(child.relative_to(path)) for child in sorted(found))
        return f"several checkpoints in it, name one: {names}"
    if files := sorted(path.glob("*.gguf")):
        return f"name one of its GGUF files: {', '.join(file.name for file in files)}"
    if any(any(path.glob(pattern)) for pattern in PICKLED):
        return PICKLED_WEIGHTS
    return "no checkpoint in it: no Orbax manifest.ocdbt, no config.json with safetensors files"
