"""The table of a small Gemma 4's own embeddings per layer: served from where it is stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_server.model.cache import empty_cache
from gemma_server.model.numerics import Numerics
from gemma_server.model.transformer import Transformer
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint
from gemma_server.serving.on_device import put_on_device
from testing.gemma4 import write_gemma4_gguf, write_gemma4_hf, write_gemma4_tokenizer
from testing.models import oracle_logits

NAME = "gemma4-e"


@pytest.fixture(params=["GGUF", "Hugging Face"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Checkpoint]:
    """The file that holds the table, and its checkpoint."""
    if request.param == "GGUF":
        path = write_gemma4_gguf(tmp_path / "m.gguf", NAME)
        return path, open_checkpoint(path)
    path = write_gemma4_hf(tmp_path, NAME)
    write_gemma4_tokenizer(tmp_path, NAME)
    return path / "model.safetensors", open_checkpoint(path)


def mapped(path: Path) -> Iterator[range]:
    """The addresses at which this process sees the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            yield range(*(int(end, 16) for end in line.split()[0].split("-")))


def test_on_a_cpu_it_stays_in_its_file(opened: tuple[Path, Checkpoint]) -> None:
    path, checkpoint = opened
    params = put_on_device(checkpoint, jnp.float32, lambda done, total: None)
    table = params["embedder"]["per_layer_embedding"]
    address = table.units.unsafe_buffer_pointer()
    assert any(address in addresses for addresses in mapped(path))


def test_the_model_reads_its_rows(opened: tuple[Path, Checkpoint]) -> None:
    _, checkpoint = opened
    table = checkpoint.weights.own_table
    assert table is not None
    numerics = Numerics(jnp.dtype("float32"), block=16, own_table=table.layout)
    model: Any = Transformer(checkpoint.config, numerics)
    params = put_on_device(checkpoint, numerics.dtype, lambda done, total: None)
    ids = [2, *range(20, 60)]
    tokens = jnp.array([ids])

    def logits(params: Any) -> Any:
        variables = {"params": params}
        cache = empty_cache(checkpoint.config, 1, 64, numerics.dtype)
        hidden, _ = model.apply(
            variables, tokens, jnp.arange(len(ids))[None], cache, jnp.zeros(1, jnp.int32)
        )
        return model.apply(variables, hidden[0], method="logits")

    found = np.asarray(jax.jit(logits)(params))
    np.testing.assert_allclose(found, oracle_logits(NAME, ids), atol=1e-3)
