"""A checkpoint that `gemma-server convert` wrote: the runner's own tree, copied as it is.

It is an Orbax directory whose arrays have the tree's names and layout, with three files
beside them: `gemma-server.json`, the architecture, the stop ids and the sampling defaults,
`tokenizer.model`, and `chat_template.jinja`, if the original has one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.files import CHAT_TEMPLATE, read_json, read_text
from gemma_server.weights.numbers import Numbers
from gemma_server.weights.orbax.container import open_arrays, refuse_other_dtypes
from gemma_server.weights.orbax.gemma import copy_array, stored_bytes
from gemma_server.weights.sampling_defaults import SamplingDefaults, read_sampling
from gemma_server.weights.source import OWN_TABLE, Rows
from gemma_server.weights.stored_table import StoredTable, copied_table

DESCRIPTION = "gemma-server.json"
_FORMAT = 4


class ConvertedWeights:
    """A converted checkpoint, as a `WeightSource`.

    Raises:
        ModelLoadError: the directory is damaged.
    """

    format = "converted by gemma-server"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.stop_ids, self.sampling = _read_description(path / DESCRIPTION)
        self.suppressed_ids = frozenset(self.config.suppressed)
        template = path / CHAT_TEMPLATE
        self.chat_template = read_text(template) if template.is_file() else None
        self._arrays = open_arrays(path)
        refuse_other_dtypes(path, self._arrays)
        self.tensors = self._arrays.keys()
        self.stored = stored_bytes(self._arrays.values())
        layers = {name.partition("/")[0] for name in self._arrays if name.startswith("layer_")}
        if len(layers) != len(self.config.layers):
            raise ModelLoadError(
                f"{path}: {DESCRIPTION} says {len(self.config.layers)} layers, it has {len(layers)}"
            )

    @property
    def own_table(self) -> StoredTable | None:
        array = self._arrays.get(OWN_TABLE)
        if array is None:
            return None
        return copied_table(partial(copy_array, array), array.dtype.numpy_dtype, array.shape)

    def rows(self, leaf: str) -> Sequence[Rows]:
        array = self._arrays[leaf]
        return [Rows(leaf, array.shape, partial(copy_array, array))]


def write_description(
    path: Path, config: GemmaConfig, stop_ids: frozenset[int], sampling: SamplingDefaults
) -> None:
    """Write the architecture, what ends an answer and how it is best sampled into a converted
    checkpoint's directory."""
    description = {
        "format": _FORMAT,
        "config": asdict(config),
        "stop_ids": sorted(stop_ids),
        "sampling": asdict(sampling),
    }
    (path / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def _read_description(path: Path) -> tuple[GemmaConfig, frozenset[int], SamplingDefaults]:
    description = read_json(path)
    if description.get("format") != _FORMAT:
        raise ModelLoadError(
            f"{path}: format {str(description.get('format'))[:20]}, this version reads {_FORMAT}; "
            "convert the original again"
        )
    try:
        config = TypeAdapter(GemmaConfig).validate_python(description.get("config"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise ModelLoadError(f"{path}: config: {field}: {first['msg']}") from None
    sampling = description.get("sampling", {})  # older ones have none
    if not isinstance(sampling, dict):
        raise ModelLoadError(f"{path}: sampling is no object")
    return (
        config,
        Numbers(description, str(path)).ids("stop_ids"),
        read_sampling(Numbers(sampling, f"{path}: sampling")),
    )
