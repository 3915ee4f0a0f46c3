"""Sampling against plain NumPy definitions of each filter."""

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

VOCAB = 50


def _sampling(rows: int, **columns: Any) -> Any:
    from gemma_server.model import sampling

    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    full = {
        name: np.broadcast_to(np.asarray(columns.get(name, default)), (rows,))
        for name, default in defaults.items()
    }
    seeds = np.stack([np.zeros(rows), columns.get("seed", np.arange(rows))], axis=1)
    make: Any = sampling.Sampling  # takes NumPy as well as jax arrays
    return make(
        full["temperature"].astype(np.float32),
        full["top_k"].astype(np.int32),
        full["top_p"].astype(np.float32),
        full["min_p"].astype(np.float32),
        seeds.astype(np.uint32),
    )


def _draw(logits: Any, how: Any, position: int = 7) -> Any:
    import jax

    from gemma_server.model.sampling import sample

    rows = len(logits)
    positions = np.full(rows, position, np.int32)
    return np.asarray(jax.jit(sample)(np.asarray(logits, np.float32), how, positions))


def _logits(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(VOCAB) * 2


def _reference(logits: Any, temperature: float, top_k: int, top_p: float, min_p: float) -> Any:
    """The filtered distribution in float64: temperature, top-k, top-p, min-p, in this order."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled)
    keep = np.zeros(VOCAB, bool)
    keep[order[: top_k or VOCAB]] = True
    weights = np.where(keep, np.exp(scaled - scaled.max()), 0.0)
    weights /= weights.sum()
    total = 0.0
    nucleus = np.zeros(VOCAB, bool)
    for token in order:
        nucleus[token] = True
        total += weights[token]
        if total >= top_p:
            break
    weights = np.where(keep & nucleus, np.exp(scaled - scaled.max()), 0.0)
    weights[weights < min_p] = 0.0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(options: dict[str, float]) -> None:
    draws = 20_000
    logits = _logits()
    drawn = _draw(np.tile(logits, (draws, 1)), _sampling(draws, **options))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    expected = _reference(logits, **settings)  # type: ignore[arg-type]
    found = np.bincount(drawn, minlength=VOCAB) / draws
    assert found[expected == 0].sum() == 0
    # Five standard deviations of a binomial share: these are 50 fixed draws, not a lottery.
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9)


def test_temperature_0_is_the_argmax_whatever_the_rest_says() -> None:
    logits = np.stack([_logits(seed) for seed in range(8)])
    how = _sampling(8, temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
    np.testing.assert_array_equal(_draw(logits, how), logits.argmax(axis=-1))


def test_top_k_1_is_the_argmax_at_any_temperature() -> None:
    logits = np.stack([_logits(seed) for seed in range(8)])
    how = _sampling(8, temperature=5.0, top_k=1)
    np.testing.assert_array_equal(_draw(logits, how), logits.argmax(axis=-1))


def test_a_draw_depends_on_its_own_seed_and_position_alone() -> None:
    logits = _logits()
    alone = _draw([logits], _sampling(1, seed=[42]))
    among = _draw(
        [_logits(1), logits, _logits(2)],
        _sampling(3, seed=[1, 42, 3], temperature=[0.0, 1.0, 2.0], top_k=[0, 0, 3]),
    )
    assert among[1] == alone[0]
    elsewhere = [_draw([logits], _sampling(1, seed=[42]), position=p)[0] for p in range(20)]
    assert len(set(elsewhere)) > 5
    other_seeds = _draw([logits] * 20, _sampling(20))
    assert len(set(other_seeds)) > 5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_marked_and_others_are_not(
    bad: float, temperature: float
) -> None:
    logits = np.stack([_logits(0), _logits(1)])
    logits[0, 13] = bad
    drawn = _draw(logits, _sampling(2, temperature=temperature))
    assert drawn[0] == -1
    assert drawn[1] >= 0


@pytest.mark.parametrize("temperature", [1e-38, 3e-38, 1e-20, 1e-3])
def test_a_tiny_temperature_is_as_good_as_greedy(temperature: float) -> None:
    logits = np.stack([_logits(seed) * 10 for seed in range(8)])
    drawn = _draw(logits, _sampling(8, temperature=temperature, top_k=40, top_p=0.9))
    np.testing.assert_array_equal(drawn, logits.argmax(axis=-1))


def test_tokens_equal_to_the_last_one_kept_stay() -> None:
    logits = np.zeros(VOCAB)
    logits[[3, 9, 27]] = 2.0
    drawn = _draw(np.tile(logits, (500, 1)), _sampling(500, top_k=2))
    assert set(drawn.tolist()) == {3, 9, 27}
