"""The models that embed texts, against the library's numbers and those from the equations."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.model.config import GemmaConfig, LayerConfig
from testing.embedding import NAMES, TOLERANCE, embedding_model, oracle_embedding, read_golden

Vectors = npt.NDArray[np.float32]
ROWS = 8


@cache
def _compiled(name: str, dtype: str) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    from gemma_server.model.numerics import Numerics
    from gemma_server.model.transformer import Transformer

    config, params = embedding_model(name)
    model = Transformer(config, Numerics(jnp.dtype(dtype)))
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)
    apply = jax.jit(lambda tree, *text: model.apply({"params": tree}, *text, method="embed"))
    return apply, cast


def embed(name: str, texts: list[list[int]], length: int, dtype: str = "float32") -> Vectors:
    """The embeddings of a batch padded to `length` and to few sizes, by other tokens."""
    apply, params = _compiled(name, dtype)
    rows = ROWS if length <= 64 else 1
    tokens, lengths = np.full((rows, length), 7, np.int32), np.full(rows, 3, np.int32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return np.asarray(apply(params, tokens, lengths))[: len(texts)]


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_agrees_with_the_library(name: str) -> None:
    for ids, vector in read_golden(name):
        np.testing.assert_allclose(oracle_embedding(name, ids), vector, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_agrees_with_the_library(name: str) -> None:
    """With texts around the windows' borders, and one that is worked on in several parts."""
    goldens = read_golden(name)
    for length, some in ((64, goldens[:-1]), (512, goldens[-1:])):
        found = embed(name, [ids for ids, _ in some], length)
        expected = np.array([vector for _, vector in some])
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_text_in_three_parts_agrees_with_the_equations() -> None:
    """What the middle part sees ends on both sides within the text."""
    ids = np.random.default_rng(5).integers(4, 300, 700).tolist()
    [found] = embed("embedding", [ids], 768)
    expected = oracle_embedding("embedding", ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_neighbours_do_not_matter(name: str) -> None:
    goldens = read_golden(name)
    short, long = goldens[2][0], goldens[7][0]
    alone = embed(name, [short], 64)
    np.testing.assert_allclose(embed(name, [short], 16), alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(embed(name, [long, short], 64)[1:], alone, rtol=0, atol=1e-6)


def test_in_bfloat16_a_vector_points_nearly_the_same_way() -> None:
    ids, vector = read_golden("embedding2")[6]
    [found] = embed("embedding2", [ids], 64, "bfloat16")
    assert found.dtype == np.float32
    assert found @ vector > 0.99


def test_the_order_and_what_stands_behind_a_token_matter() -> None:
    ids = read_golden("embedding")[6][0]
    first, second = embed("embedding", [ids, ids[::-1]], 64)
    assert np.abs(first - second).max() > 0.01


def test_a_model_that_looks_both_ways_shares_no_keys_and_only_such_a_one_has_dense_layers() -> None:
    config, _ = embedding_model("embedding")
    assert config.embedding_width == 48
    assert replace(config, dense=()).embedding_width == config.width
    assert config.cached_numbers_per_token == 0
    sharing = LayerConfig(3, 1, 16, 96, kv_layer=7)
    for wrong in (
        {"bidirectional": False},
        {"layers": (*config.layers, sharing)},
        {"dense": (0,)},
    ):
        with pytest.raises(ValueError, match="no Gemma has"):
            replace(config, **wrong)


@pytest.mark.parametrize("name", NAMES)
def test_the_tree_is_what_the_modules_declare(name: str) -> None:
    from flax.traverse_util import flatten_dict

    from gemma_server.model.config import stays_float32
    from gemma_server.model.transformer import abstract_params

    config: GemmaConfig = embedding_model(name)[0]
    for dtype in ("float32", "bfloat16"):
        leaves = flatten_dict(abstract_params(config, dtype), sep="/")
        assert {path: leaf.shape for path, leaf in leaves.items()} == config.leaf_shapes
        for path, leaf in leaves.items():
            assert leaf.dtype == ("float32" if stays_float32(path) else dtype), path
