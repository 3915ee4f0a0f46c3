"""Sampling against plain NumPy definitions of each filter."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from testing.counts import cases

pytestmark = pytest.mark.slow

VOCAB = 50
LARGE = 2048  # more than the sampler looks at first, and several of its blocks
FEW, SOME, MANY = 20, 4000, 20_000  # rows
TEXT = [3, 3, 9, 27, 3, 9, 5, 5, 5, 5]  # from position 6 on what another text left there


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


def _adjustment(rows: int, entries: int = 4, **columns: Any) -> Any:
    from gemma_server.model.penalties import Penalties

    make: Any = Penalties
    defaults = {"repetition": 1.0, "frequency": 0.0, "presence": 0.0, "window": -1, "answer": 0}
    full = [
        np.broadcast_to(np.asarray(columns.get(name, default)), (rows,))
        for name, default in defaults.items()
    ]
    table = np.zeros((3, rows, entries))
    for row, biases in enumerate(columns.get("bias", ())):
        table[:, row, : len(biases)] = np.array(biases, np.float64).reshape(-1, 3).T
    ids, values, until = table
    return make(
        *(column.astype(np.float32) for column in full[:3]),
        *(column.astype(np.int32) for column in full[3:]),
        ids.astype(np.int32),
        values.astype(np.float32),
        until.astype(np.int32),
    )


@cache
def _compiled() -> Any:
    import jax

    from gemma_server.model.masks import Masks
    from gemma_server.model.sampling import Adjusted, sample

    def draw(logits: Any, how: Any, adjustment: Any, texts: Any, masks: Any, at: Any) -> Any:
        active, words = masks
        adjusted = Adjusted(logits, adjustment, Masks(active, words), lambda: texts)
        return sample(adjusted, how, at)

    return jax.jit(draw)


def _draw(
    logits: Any,
    how: Any,
    position: Any = 7,
    adjustment: Any = None,
    texts: Any = None,
    allowed: Any = None,
) -> Any:
    """Each row's draw. Rows are filled up to few sizes, each a program, with greedy ones. Of the
    rows that `allowed` has, those with a True have a mask."""
    rows, vocab = np.shape(logits)
    filling = next(size for size in (FEW, SOME, rows) if size >= rows) - rows
    positions = np.broadcast_to(np.asarray(position, np.int32), (rows,))
    adjustment = _adjustment(rows) if adjustment is None else adjustment
    texts = np.zeros((rows, len(TEXT))) if texts is None else np.asarray(texts)
    drawn = _compiled()(
        np.pad(np.asarray(logits, np.float32), ((0, filling), (0, 0))),
        _joined(how, _sampling(filling, temperature=0.0)),
        _joined(adjustment, _adjustment(filling)),
        np.pad(texts.astype(np.int32), ((0, filling), (0, 0))),
        _masks(np.zeros((rows, vocab), bool) if allowed is None else allowed, filling),
        np.pad(positions, (0, filling)),
    )
    return np.asarray(drawn)[:rows]


def _masks(allowed: Any, filling: int) -> Any:
    """Which rows have a mask, and the words of these."""
    bits = np.pad(allowed, ((0, filling), (0, -allowed.shape[1] % 32)))
    packed = np.packbits(bits, axis=1, bitorder="little")
    return bits.any(axis=1), packed.view(np.int32)


def _joined(some: Any, others: Any) -> Any:
    """Two tuples of columns as one, rows behind rows."""
    return type(some)(*(np.concatenate(pair) for pair in zip(some, others, strict=True)))


def _logits(seed: int = 0, vocab: int = VOCAB) -> Any:
    return np.random.default_rng(seed).standard_normal(vocab) * 2


def _reference(logits: Any, temperature: float, top_k: int, top_p: float, min_p: float) -> Any:
    """The filtered distribution in float64: temperature, top-k, top-p, min-p, in this order."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled)
    keep = np.zeros(len(scaled), bool)
    keep[order[: top_k or len(scaled)]] = True
    weights = np.where(keep, np.exp(scaled - scaled.max()), 0.0)
    weights /= weights.sum()
    total = 0.0
    nucleus = np.zeros(len(scaled), bool)
    for token in order:
        nucleus[token] = True
        total += weights[token]
        if total >= top_p:
            break
    weights = np.where(keep & nucleus, np.exp(scaled - scaled.max()), 0.0)
    weights[weights < min_p] = 0.0
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("vocab", "options"),
    [
        (VOCAB, {}),
        (VOCAB, {"temperature": 0.5}),
        (VOCAB, {"top_k": 5}),
        (VOCAB, {"top_p": 0.7}),
        (VOCAB, {"min_p": 0.2}),
        (VOCAB, {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05}),
        (LARGE, {}),
        (LARGE, {"top_k": 40, "top_p": 0.9}),
        (LARGE, {"top_k": 1000}),
        (LARGE, {"temperature": 4.0, "top_p": 0.98}),
        (LARGE, {"temperature": 4.0, "top_k": 1500, "top_p": 0.98}),
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(vocab: int, options: dict[str, float]) -> None:
    draws = MANY if vocab == VOCAB else cases(SOME, MANY)
    logits = _logits(vocab=vocab)
    drawn = _draw(np.tile(logits, (draws, 1)), _sampling(draws, **options))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    expected = _reference(logits, **settings)  # type: ignore[arg-type]
    found = np.bincount(drawn, minlength=vocab) / draws
    assert found[expected == 0].sum() == 0
    # Five standard deviations of a binomial share, and two draws for the rarest tokens: these are
    # fixed draws, not a lottery.
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(found - expected) <= 5 * deviation + 2 / draws)
    # What is wrong with many rare tokens adds up: likeliest first, the shares agree at any point.
    order = np.argsort(-expected)
    assert np.abs(np.cumsum(found[order]) - np.cumsum(expected[order])).max() < 2 / np.sqrt(draws)


def test_a_row_whose_top_is_wide_changes_no_other_s() -> None:
    logits = np.stack([_logits(seed, LARGE) for seed in range(4)])
    narrow: dict[str, list[Any]] = {"top_k": [3, 0, 0, 40], "top_p": [1.0, 0.5, 1.0, 0.9]}
    alone = [
        _draw([row], _sampling(1, seed=[seed], **{name: [v[seed]] for name, v in narrow.items()}))
        for seed, row in enumerate(logits)
    ]
    among = _draw(
        np.vstack([logits, _logits(4, LARGE)]),
        _sampling(5, top_k=[*narrow["top_k"], 1000], top_p=[*narrow["top_p"], 1.0]),
    )
    np.testing.assert_array_equal(among[:4], np.concatenate(alone))


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


def test_draws_that_follow_each_other_have_nothing_to_do_with_each_other() -> None:
    draws, vocab = MANY, 8
    same = _sampling(draws, seed=np.full(draws, 3))
    one_text = _draw(np.zeros((draws, vocab)), same, np.arange(draws))
    many_texts = _draw(np.zeros((draws, vocab)), _sampling(draws))
    for drawn in (one_text, many_texts):
        for apart in (1, 2, 256):
            pairs = drawn[:-apart] * vocab + drawn[apart:]
            found = np.bincount(pairs, minlength=vocab**2) / len(pairs)
            share = 1 / vocab**2
            assert np.all(np.abs(found - share) < 5 * np.sqrt(share / len(pairs)))


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


ALWAYS = 1 << 30
ADJUSTMENTS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition": 1.5},
    "below 1": {"repetition": 0.5},
    "frequency": {"frequency": 0.7, "answer": 2},
    "presence": {"presence": 2.5, "answer": 2},
    "a window": {"repetition": 1.3, "frequency": -0.4, "presence": 0.3, "window": 2, "answer": 5},
    "no window": {"repetition": 1.3, "frequency": 0.4, "presence": -0.3, "answer": 4},
    "a window of nothing": {"repetition": 2.0, "window": 0},
    "bias": {"bias": [(4, 3.5, ALWAYS), (9, -100.0, ALWAYS)]},
    "a ban": {"bias": [(9, -np.inf, 7), (3, -np.inf, 6)]},
    "all": {
        "repetition": 1.2,
        "presence": 0.5,
        "window": 4,
        "bias": [(9, 2.0, 99), (3, -np.inf, 7)],
    },
}


def _adjusted(logits: Any, position: int, options: dict[str, Any]) -> Any:
    """In float64, one token after the other."""
    changed, read = np.array(logits, np.float64), TEXT[:position]
    for token, value, until in options.get("bias", ()):
        changed[token] += value if position < until else 0
    window = options.get("window", -1)
    seen = read if window < 0 else read[len(read) - window :]
    others = read[options.get("answer", 0) :] if window < 0 else seen
    for token in range(VOCAB):
        if token in seen:
            penalty = options.get("repetition", 1.0)
            changed[token] *= 1 / penalty if changed[token] > 0 else penalty
        count = others.count(token)
        changed[token] -= options.get("frequency", 0.0) * count
        changed[token] -= options.get("presence", 0.0) * (count > 0)
    return changed


@pytest.mark.parametrize("position", [6, 7])
def test_adjustments_match_their_definitions_row_by_row(position: int) -> None:
    """One row for each, and one without any, which keeps its bits."""
    import jax

    cases = [*ADJUSTMENTS.values(), {}]
    rows = len(cases)
    columns: dict[str, Any] = {
        name: [case.get(name, default) for case in cases]
        for name, default in [("repetition", 1.0), ("frequency", 0.0), ("presence", 0.0),
                              ("window", -1), ("answer", 0), ("bias", [])]
    }  # fmt: skip
    logits = np.stack([_logits(seed) for seed in range(rows)]).astype(np.float32)
    positions, texts = (
        np.full(rows, position, np.int32),
        np.tile(np.array(TEXT, np.int32), (rows, 1)),
    )
    adjustment = _adjustment(rows, **columns)
    got = np.asarray(jax.jit(type(adjustment).apply)(adjustment, logits, texts, positions))
    for row, case in enumerate(cases):
        expected = _adjusted(logits[row], position, case)
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[-1], logits[-1])
    greedy = _draw(logits, _sampling(rows, temperature=0.0), position, adjustment, texts)
    np.testing.assert_array_equal(greedy, got.argmax(axis=-1))


def test_filters_and_noise_come_after_the_adjustments() -> None:
    draws = SOME
    options = ADJUSTMENTS["all"]
    columns = {**options, "bias": [options["bias"]] * draws}
    logits, texts = _logits(), np.tile(TEXT, (draws, 1))
    how = _sampling(draws, temperature=0.8, top_k=6, top_p=0.9)
    drawn = _draw(np.tile(logits, (draws, 1)), how, 6, _adjustment(draws, **columns), texts)
    expected = _reference(_adjusted(logits, 6, options), 0.8, 6, 0.9, 0.0)
    found = np.bincount(drawn, minlength=VOCAB) / draws
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9)


def test_a_neighbour_s_adjustments_change_no_draw() -> None:
    logits, texts = np.stack([_logits(seed) for seed in range(3)]), np.tile(TEXT, (3, 1))
    how = _sampling(3, temperature=[0.0, 1.0, 0.0], top_k=[0, 5, 0])
    among = _adjustment(3, repetition=[1.0, 1.0, 1.8], bias=[[], [], [(2, 50.0, 99)]])
    drawn = _draw(logits, how, 6, among, texts)
    np.testing.assert_array_equal(drawn[:2], _draw(logits, how, 6)[:2])
    assert drawn[2] == 2


def test_a_ban_does_not_make_a_row_count_as_not_finite() -> None:
    [drawn] = _draw(
        [_logits()], _sampling(1, temperature=1.0), 6, _adjustment(1, bias=[[(3, -np.inf, 9)]])
    )
    assert drawn >= 0


def _allowed(rows: int, masked: Any, share: float) -> Any:
    """Masks with about this share of the tokens, at least one, for the rows that are masked."""
    rng = np.random.default_rng(1)
    allowed = rng.random((rows, VOCAB)) < share
    allowed[:, rng.integers(VOCAB)] = True
    return allowed & masked[:, None]


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_masked_row_takes_what_it_may_and_others_are_as_they_were(share: float) -> None:
    rows = 500
    logits, masked = np.tile(_logits(), (rows, 1)), np.arange(rows) % 2 == 0
    how = {"temperature": np.where(np.arange(rows) % 3 == 0, 0.0, 1.0), "top_k": 5, "top_p": 0.9}
    allowed = _allowed(rows, masked, share)
    drawn, free = (_draw(logits, _sampling(rows, **how), allowed=a) for a in (allowed, None))
    assert allowed[masked, drawn[masked]].all()
    assert (drawn[~masked] == free[~masked]).all()
    greedy = masked & (how["temperature"] == 0)
    assert (drawn[greedy] == np.where(allowed, logits, -np.inf).argmax(axis=1)[greedy]).all()


def test_a_mask_leaves_a_draw_that_it_allows() -> None:
    """Without filters the race's winner wins among the allowed too."""
    rows = 500
    logits, everything = np.tile(_logits(), (rows, 1)), np.ones(rows, bool)
    allowed = _allowed(rows, everything, 0.5)
    drawn, free = (_draw(logits, _sampling(rows), allowed=a) for a in (allowed, None))
    may = allowed[np.arange(rows), free]
    assert (drawn[may] == free[may]).all()
    assert allowed[np.arange(rows), drawn].all()
    assert 0 < may.sum() < rows


def test_a_bias_does_not_open_a_mask() -> None:
    logits = np.tile(_logits(), (2, 1))
    allowed = np.zeros((2, VOCAB), bool)
    allowed[:, [3, 4]] = True
    adjustment = _adjustment(2, bias=[[(7, 100.0, 99)], [(4, 100.0, 99)]])
    drawn = _draw(logits, _sampling(2, temperature=0.0), adjustment=adjustment, allowed=allowed)
    assert drawn.tolist() == [3 if logits[0, 3] > logits[0, 4] else 4, 4]
