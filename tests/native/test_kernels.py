"""The native kernels against float64 NumPy, as this machine runs them and in portable code."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.model import kernels
from gemma_server.model.config import BLOCK, GROUP
from gemma_server.model.masks import Masks
from gemma_server.model.quantized import Quantized, masked_product, product
from gemma_server.native.library import load
from gemma_server.private_directory import PrivateDirectory
from gemma_server.settings import default_cache_dir
from gemma_server.weights.blocks import Blocks
from testing.tiny import quantized

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]

SIZES = [(GROUP, BLOCK), (3 * GROUP, 2 * BLOCK), (37, 96), (1, BLOCK), (640, 2048)]
ROWS = 70  # more than a panel, and no multiple of a tile


@pytest.fixture(autouse=True, scope="module", params=["this machine's code", "portable code"])
def built(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels under names of their own, so that both versions can be there."""
    prefix = request.param.replace(" ", "_") + "_"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXXFLAGS", "-DGEMMA_PORTABLE" if "portable" in prefix else "")
        load(PrivateDirectory(default_cache_dir() / "native"), prefix)
        call: Any = jax.ffi.ffi_call
        patch.setattr(jax.ffi, "ffi_call", lambda name, result: call(prefix + name, result))
        yield


def _matrix(out: int, width: int, seed: int = 0) -> tuple[Quantized, npt.NDArray[np.float64]]:
    """Random blocks, packed, and the matrix that they are."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (out, width), np.int8)
    scales = np.exp(rng.normal(-6, 2, (out, width // BLOCK))).astype(np.float16)
    scales.flat[0] = 2**-24  # the smallest that f16 has, and the largest
    scales.flat[-1] = 65504
    dense = values.astype(np.float64) * np.repeat(scales.astype(np.float64), BLOCK, axis=1)
    return quantized(Blocks(values, scales)), dense


def _outliers(rows: int, width: int) -> Floats:
    """Rows whose columns differ in size by orders of magnitude, as Gemma's activations do."""
    rng = np.random.default_rng(1)
    columns = np.exp(rng.normal(0, 2, width))
    return (rng.normal(size=(rows, width)) * columns).astype(np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_the_exact_one_of_rows_rounded_to_16_bits(size: tuple[int, int]) -> None:
    matrix, dense = _matrix(*size)
    x = _outliers(ROWS, size[1])
    step = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 32767
    rounded = np.round(x / step) * step
    expected, extent = rounded @ dense.T, np.abs(rounded) @ np.abs(dense.T)
    got = np.asarray(product(jnp.asarray(x), matrix, native=True))
    # A tie may round either way, by one step in one column; sums of blocks round in float32.
    ties = step * np.abs(dense).max(axis=1)
    assert (np.abs(got - expected) <= 1e-5 * extent + ties).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_has_the_same_bits_whatever_is_beside_it(size: tuple[int, int]) -> None:
    matrix, _ = _matrix(*size)
    x = _outliers(ROWS, size[1])
    together = np.asarray(product(jnp.asarray(x), matrix, native=True))
    for count in (1, 2, 3, 4, 5, 8, 33):
        rows = jnp.asarray(x[ROWS - count :])
        some = np.asarray(product(rows, matrix, native=True))
        np.testing.assert_array_equal(some, together[ROWS - count :])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(bad: float) -> None:
    matrix, _ = _matrix(37, 96)
    x = _outliers(6, 96)
    x[2, 50] = bad
    got = np.asarray(product(jnp.asarray(x), matrix, native=True))
    assert np.isnan(got[2]).all()
    assert np.isfinite(np.delete(got, 2, axis=0)).all()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-45, 3e38])
def test_rows_of_any_size_have_finite_products(size: float) -> None:
    matrix = quantized(Blocks(np.ones((16, 32), np.int8), np.full((16, 1), 2**-10, np.float16)))
    got = np.asarray(product(jnp.full((1, 32), size, jnp.float32), matrix, native=True))
    np.testing.assert_allclose(got, np.float32(size / 32), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("size", [(3 * GROUP, 64), (70, 96), (1000, 32)], ids=str)
def test_a_masked_product_has_the_bits_of_what_is_wanted(size: tuple[int, int]) -> None:
    matrix, _ = _matrix(*size)
    x, rng = jnp.asarray(_outliers(6, size[1])), np.random.default_rng(5)
    wanted = rng.random((6, size[0])) < np.array([[0.0], [0.01], [0.5], [1.0], [0.02], [0.0]])
    wanted[1, -1] = wanted[4, 0] = True
    bits = np.zeros((6, -(-size[0] // 32) * 32), np.uint8)
    bits[:, : size[0]] = wanted
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    active = np.array([True, True, True, True, False, True])
    got = masked_product(x, matrix, Masks(jnp.asarray(active), jnp.asarray(words)))
    every = np.asarray(product(x, matrix, native=True))
    expected = np.where(wanted | ~active[:, None], every, -np.inf)
    np.testing.assert_array_equal(np.asarray(got), expected)


CACHES = [  # heads, key-value heads, head width, cache length, window, soft cap
    pytest.param(4, 1, 256, 1024, None, None, id="270M"),
    pytest.param(4, 1, 256, 1024, 512, None, id="270M, local"),
    pytest.param(8, 4, 64, 512, 100, 50.0, id="soft cap"),
    pytest.param(3, 3, 10, 256, 7, 2.0, id="odd sizes"),
    pytest.param(10, 2, 24, 300, None, None, id="five queries a head"),
]


TOKENS = 21  # of a row: more than a block, and no multiple of a tile


@pytest.mark.parametrize(("heads", "kv_heads", "width", "length", "window", "cap"), CACHES)
def test_attention_is_the_definition_s_for_tokens_together_and_alone(
    heads: int, kv_heads: int, width: int, length: int, window: int | None, cap: float | None
) -> None:
    rng = np.random.default_rng(0)
    slots = np.array([0, 3, 2, 1, 3], np.int32)
    first = np.array([0, length - 9, length // 2 + 3, 250, 17], np.int32)
    steps = np.arange(TOKENS, dtype=np.int32)
    positions = np.add.outer(first, steps, dtype=np.int32)  # some are beyond the end
    q = rng.normal(size=(5, TOKENS, heads, width)).astype(np.float32)
    k, v = (_bfloat16(rng, (4, kv_heads, length, width)) for _ in "kv")
    got = _attend(q, k, v, slots, positions, window, cap)
    for row, token in np.argwhere(positions < length):
        at = positions[row, token]
        seen = slice(0 if window is None else max(0, at - window + 1), at + 1)
        for head in range(heads):
            cached = slots[row], head // (heads // kv_heads), seen
            scores = k[cached].astype(np.float64) @ q[row, token, head]
            scores = scores if cap is None else np.tanh(scores / cap) * cap
            weights = np.exp(scores - scores.max())
            expected = weights @ v[cached].astype(np.float64) / weights.sum()
            np.testing.assert_allclose(got[row, token, head], expected, atol=2e-5)
    flat = q.reshape(-1, 1, heads, width), np.repeat(slots, TOKENS), positions.reshape(-1, 1)
    alone = _attend(flat[0], k, v, flat[1], flat[2], window, cap)
    np.testing.assert_array_equal(alone.reshape(got.shape), got)
    [row] = _attend(q[4:], k, v, slots[4:], positions[4:], window, cap)
    np.testing.assert_array_equal(row, got[4])


def test_attention_over_more_than_its_memory_takes_turns() -> None:
    """256 tokens over 40,000 positions: their partial sums are 80 MB."""
    rng = np.random.default_rng(0)
    k, v = (_bfloat16(rng, (1, 1, 40_000, 32)) for _ in "kv")
    q = rng.normal(size=(1, 256, 16, 32)).astype(np.float32)
    positions, slots = np.arange(39_000, 39_256, dtype=np.int32)[None], np.zeros(1, np.int32)
    together = _attend(q, k, v, slots, positions, None, None)
    for token in (0, 100, 255):
        alone = _attend(q[:, [token]], k, v, slots, positions[:, [token]], None, None)
        np.testing.assert_array_equal(alone[0, 0], together[0, token])


def test_attention_skips_padding_and_what_the_last_user_left() -> None:
    rng = np.random.default_rng(0)
    k, v = (_bfloat16(rng, (2, 1, 64, 16)) for _ in "kv")
    k[0, 0, 12:] = v[0, 0, 12:] = np.nan
    q = rng.normal(size=(4, 3, 2, 16)).astype(np.float32)
    slots = np.array([0, 2, 1, -1], np.int32)
    positions = np.array([[9, 64, 11], [5, 6, 7], [64, 65, 66], [5, 6, 7]], np.int32)
    got = _attend(q, k, v, slots, positions, None, None)
    assert np.isfinite(got).all()
    assert np.argwhere(got.any(axis=(2, 3))).tolist() == [[0, 0], [0, 2]]


def _bfloat16(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return rng.normal(size=shape).astype(jnp.bfloat16)


def _attend(
    q: Floats,
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    slots: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    window: int | None,
    cap: float | None,
) -> Floats:
    bits_of_k, bits_of_v = jnp.asarray(k.view(np.uint16)), jnp.asarray(v.view(np.uint16))
    at = jnp.asarray(slots), jnp.asarray(positions)
    mixed = kernels.attention(jnp.asarray(q), bits_of_k, bits_of_v, *at, window, cap)
    return np.asarray(mixed)


@pytest.mark.parametrize("width", [1, 15, 16, 640, 2049])
def test_norm_is_the_definition_s_and_each_row_s_own(width: int) -> None:
    x, scale = _outliers(ROWS, width), _outliers(1, width)[0]
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-6) * scale
    got = np.asarray(kernels.norm(jnp.asarray(x), jnp.asarray(scale), 1e-6))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    one = np.asarray(kernels.norm(jnp.asarray(x[40:41]), jnp.asarray(scale), 1e-6))
    np.testing.assert_array_equal(one[0], got[40])
