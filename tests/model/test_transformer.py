"""The transformer's numbers against the NumPy float64 Gemma, through real checkpoint files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.model.numerics import Numerics
from gemma_server.model.transformer import Transformer
from gemma_server.weights.gguf.gemma import GgufWeights
from testing.forward import BLOCK, LENGTH, Model, text_of
from testing.models import config_of, one_of_each, oracle_logits, params_of, read_golden
from testing.quality import FAMILY_TOLERANCE
from testing.tiny import GGUF_NAMES, tiny_config, tiny_weights, write_gguf

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3  # rounding alone moves these logits, which spread over several units, by 1e-4


@pytest.fixture(params=one_of_each())
def case(request: pytest.FixtureRequest) -> Any:
    """Each model's name, and its parameters."""
    name: str = request.param
    return name, params_of(name)


@pytest.mark.parametrize("block", [BLOCK, LENGTH], ids=["in blocks", "in one, as on a GPU"])
def test_every_position_matches_the_oracle_in_one_pass(case: Any, block: int) -> None:
    name, params = case
    ids = text_of(name, seed=1)
    expected = oracle_logits(name, ids)
    [got] = Model(name, params, block=block).feed([0], [ids], [0])
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 16, 20])
def test_chunk_borders_change_nothing(case: Any, chunk: int) -> None:
    name, params = case
    ids = text_of(name, seed=2)
    expected = oracle_logits(name, ids)
    model = Model(name, params)
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        [got] = model.feed([1], [piece], [start])
        np.testing.assert_allclose(got, expected[start : start + len(piece)], atol=TOLERANCE)


def test_a_slot_forgets_its_last_user_and_ignores_its_neighbours(case: Any) -> None:
    name, params = case
    model = Model(name, params)
    model.feed([2], [text_of(name, seed=3, length=LENGTH)], [0])  # fills the slot to its end
    short, long = text_of(name, seed=4, length=9), text_of(name, seed=5)
    expected = {key: oracle_logits(name, ids) for key, ids in (("short", short), ("long", long))}
    got_short, got_long = model.feed([2, 0], [short, long], [0, 0])
    np.testing.assert_allclose(got_short, expected["short"], atol=TOLERANCE)
    np.testing.assert_allclose(got_long, expected["long"], atol=TOLERANCE)


@pytest.mark.parametrize("block", [BLOCK, LENGTH], ids=["in blocks", "in one, as on a GPU"])
def test_rows_at_different_positions_decode_side_by_side(case: Any, block: int) -> None:
    name, params = case
    texts = [text_of(name, seed=6, length=30), text_of(name, seed=7, length=12)]
    expected = [oracle_logits(name, ids) for ids in texts]
    model = Model(name, params, block=block)
    for slot, ids in enumerate(texts):
        model.feed([slot], [ids[:-6]], [0])
    for step in range(6, 0, -1):
        rows = [[ids[len(ids) - step]] for ids in texts]
        starts = [len(ids) - step for ids in texts]
        for got, want, start in zip(
            model.feed([0, 1], rows, starts), expected, starts, strict=True
        ):
            np.testing.assert_allclose(got[0], want[start], atol=TOLERANCE)


def test_neighbours_do_not_change_a_single_bit(case: Any) -> None:
    """A longer neighbour makes attention visit more blocks; they must leave the row alone."""
    name, params = case
    short, long = text_of(name, seed=8, length=5), text_of(name, seed=9, length=60)
    other = text_of(name, seed=10, length=60)
    answers = []
    for neighbour in (long, other[:7]):
        model = Model(name, params)
        model.feed([0], [short], [0])
        model.feed([1], [neighbour], [0])
        rows = [[3], [4]]
        answers.append(model.feed([0, 1], rows, [len(short), len(neighbour)])[0])
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("block", [BLOCK, LENGTH])
def test_what_a_slot_held_before_cannot_poison_it(case: Any, block: int) -> None:
    """Numbers that are not finite, left behind by another text, must not spread; nor when the
    new text's chunk is padded, as the runner's mostly are."""
    import jax

    name, params = case
    model = Model(name, params, block=block)
    model.feed([1], [text_of(name, seed=11)], [0])
    model.cache = jax.tree.map(_spoiled, model.cache)
    ids = text_of(name, seed=12, length=10)
    expected = oracle_logits(name, ids)
    [got] = model.feed([1], [ids], [0])
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [45, 7], ids=["in one pass", "in chunks"])
def test_the_transformer_agrees_with_the_library(case: Any, chunk: int) -> None:
    """Against numbers of the Hugging Face library, made once and kept."""
    name, params = case
    model = Model(name, params)
    ids, logits = read_golden(name)
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        [got] = model.feed([1], [piece], [start])
        expected = logits[start : start + len(piece)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=FAMILY_TOLERANCE)


def test_suppressed_tokens_are_the_least_likely_and_finite() -> None:
    import jax.numpy as jnp

    config = replace(config_of("gemma4-kv"), suppressed=(5, 9))
    model = Transformer(config, Numerics(np.dtype("float32")))
    logits: Any = model.apply(
        {"params": params_of("gemma4-kv")}, jnp.ones((2, config.width)), method="logits"
    )
    assert np.isfinite(logits).all()
    assert (logits[:, [5, 9]] < -1e38).all()
    assert (np.delete(logits, [5, 9], axis=1) > -1e3).all()


def _spoiled(cached: Any) -> Any:
    """What slot 1 keeps from its tenth position on is no number."""
    spoiled = np.array(cached)
    spoiled[1, :, 10:] = np.nan
    return spoiled


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_the_gguf_metadata_gives_the_architecture(name: str, tmp_path: Path) -> None:
    found = GgufWeights(write_gguf(tmp_path / "model.gguf", name, tiny_weights(name))).config
    wanted = tiny_config(name)
    for field in (
        "layers", "width", "vocab", "qk_norm", "post_norms", "attention_softcap", "final_softcap",
        "context_length",
    ):  # fmt: skip
        assert getattr(found, field) == getattr(wanted, field), field
