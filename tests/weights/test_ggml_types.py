"""Every ggml type that Gemma's files come in, from a file's bytes to f32, bit for bit."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.model import stored_as
from gemma_server.model.config import BLOCK
from gemma_server.model.stored_rows import StoredRows
from gemma_server.weights.blocks import Blocks
from gemma_server.weights.gguf.blocks import EXACT_IN_BLOCKS
from gemma_server.weights.gguf.container import GgufFile
from testing.oracle.ggml import BLOCKS, decode
from testing.tiny import read_tensor

Bytes = npt.NDArray[np.uint8]

ROWS, COLUMNS = (2, 7), 512  # two blocks a row, or sixteen
SCALES = [0.0, -0.0, 2**-24, -(2**-24), -1023 * 2**-24, 2**-14, 65504.0, -65504.0, 1.0, -0.1]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Bytes]:
    """Of each type, rows of random bytes that hold no NaN and no infinity."""
    rng = np.random.default_rng(0)
    return {kind: _random_rows(kind, rng) for kind in BLOCKS}


@pytest.fixture(scope="module", params=[2, 3], ids="GGUF version {}".format)
def path(
    request: pytest.FixtureRequest,
    tensors: dict[str, Bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    import gguf

    path: Path = tmp_path_factory.mktemp("types") / f"v{request.param}.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for kind, raw in tensors.items():
        writer.add_tensor(kind, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(4)
        file.write(request.param.to_bytes(4, "little"))  # all that tells version 2 from 3
    return path


@pytest.mark.parametrize("kind", BLOCKS)
def test_values_are_the_definition_s(path: Path, tensors: dict[str, Bytes], kind: str) -> None:
    expected = np.array(decode(kind, tensors[kind].tobytes()), np.float32)
    assert np.isfinite(expected).all()
    values = _read(path, kind)
    assert values.dtype == np.float32
    # Exactly: f32 arithmetic rounds once at most (see the oracle), so there is one right answer.
    np.testing.assert_array_equal(values, expected.reshape(*ROWS, COLUMNS))


@pytest.mark.parametrize("kind", EXACT_IN_BLOCKS)
def test_8_bit_blocks_hold_the_same_numbers(
    path: Path, tensors: dict[str, Bytes], kind: str
) -> None:
    expected = np.array(decode(kind, tensors[kind].tobytes()), np.float32)
    rows, columns = math.prod(ROWS), COLUMNS
    blocks = Blocks.empty(rows, columns)
    GgufFile(path).copy_blocks(kind, blocks)
    scales = np.repeat(blocks.scales.astype(np.float32), BLOCK, axis=1)
    np.testing.assert_array_equal(blocks.values * scales, expected.reshape(rows, columns))


@pytest.mark.parametrize("kind", stored_as.BLOCKS)
def test_rows_that_stay_in_the_file_are_the_same_numbers(
    path: Path, tensors: dict[str, Bytes], kind: str
) -> None:
    import jax
    import jax.numpy as jnp

    expected = np.array(decode(kind, tensors[kind].tobytes()), np.float32).reshape(-1, COLUMNS)
    table = GgufFile(path).table(kind)
    assert table is not None
    units, first = table.open()
    assert units.ctypes.data % 64 == 0
    rows = StoredRows(jnp.asarray(units), jnp.int32(first), kind, COLUMNS)
    index = np.random.default_rng(1).integers(0, len(expected), (3, 5))
    found = jax.jit(lambda table, index: table.rows(index))(rows, index)
    np.testing.assert_array_equal(np.asarray(found), expected[index])


def _read(path: Path, name: str) -> npt.NDArray[np.float32]:
    return read_tensor(GgufFile(path), name)


def _random_rows(kind: str, rng: np.random.Generator) -> Bytes:
    block = BLOCKS[kind]
    count = math.prod(ROWS) * COLUMNS // block.values
    raw = rng.integers(0, 256, (count, block.size), np.uint8)
    if kind in ("F32", "BF16"):
        raw[:, -2:] = _finite(rng, count, exponent=0x7F80)
    for at in block.halves:
        halves = _finite(rng, count, exponent=0x7C00)
        halves[: len(SCALES)] = _bytes(rng.permutation(np.array(SCALES, "<f2")))
        raw[:, at : at + 2] = halves
    return raw.reshape(*ROWS, -1)


def _finite(rng: np.random.Generator, count: int, exponent: int) -> Bytes:
    """Sixteen random bits each; an exponent of ones only would be a NaN or an infinity."""
    bits = rng.integers(0, 1 << 16, count, np.uint16)
    bits[bits & exponent == exponent] &= ~np.uint16(exponent)
    return _bytes(bits.astype("<u2"))


def _bytes(numbers: npt.NDArray[np.generic]) -> Bytes:
    return numbers.view(np.uint8).reshape(-1, 2)
