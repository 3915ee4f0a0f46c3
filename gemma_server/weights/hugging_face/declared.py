"""What a Hugging Face directory says beside the weights and the architecture."""

from pathlib import Path

from gemma_server.errors import ModelLoadError
from gemma_server.weights.files import CHAT_TEMPLATE, read_json, read_text
from gemma_server.weights.numbers import Numbers
from gemma_server.weights.sampling_defaults import SamplingDefaults, read_sampling

_GENERATION = "generation_config.json"
_MOST_CONFIG_BYTES = 16 << 20  # tokenizer_config.json lists thousands of unused tokens


def ids(path: Path, name: str) -> frozenset[int]:
    """These tokens wherever the files have them."""
    found = []
    for file in (path / "config.json", path / _GENERATION):
        whole = read_json(file) if file.is_file() else {}
        for part in (whole, whole.get("text_config")):
            if isinstance(part, dict):
                found.append(Numbers(part, str(file)).ids(name))
    return frozenset[int]().union(*found)


def sampling(path: Path) -> SamplingDefaults:
    """What the library would sample with, unless it is told not to sample."""
    file = path / _GENERATION
    said = read_json(file) if file.is_file() else {}
    number = Numbers(said, str(file))
    samples = said.get("do_sample")
    if samples is not None and not isinstance(samples, bool):
        raise number.wrong("do_sample", "neither true nor false")
    return SamplingDefaults() if samples is False else read_sampling(number)


def chat_template(path: Path) -> str | None:
    """From whichever file this version of transformers kept it in; of several, the default."""
    if (path / CHAT_TEMPLATE).is_file():
        return read_text(path / CHAT_TEMPLATE)
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = path / name
        found = read_json(file, _MOST_CONFIG_BYTES).get("chat_template") if file.is_file() else None
        if isinstance(found, list):
            named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
            found = named[0].get("template") if named else None
        if isinstance(found, str) and found:
            return found
        if found:
            raise ModelLoadError(f"{file}: its chat_template is no text")
    return None
