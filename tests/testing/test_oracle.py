"""The reference implementation is checked against hand calculation and against its invariants."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from testing.oracle import gemma
from testing.oracle.gemma import PRESETS, OracleConfig

ALL = pytest.mark.parametrize("name", sorted(PRESETS))


def draw(config: OracleConfig, length: int = 24, seed: int = 0, **options: Any) -> Any:
    """Returns weights and token ids for a config."""
    rng = np.random.default_rng(seed)
    weights = gemma.random_weights(config, rng, **options)
    return weights, rng.integers(0, config.vocab, length).tolist()


def one_layer(config: OracleConfig, window: int | None) -> OracleConfig:
    """Cuts a config down to its first layer, with the given window."""
    return replace(config, layers=1, windows=(window,), rope_bases=config.rope_bases[:1],
                   rope_factors=config.rope_factors[:1])  # fmt: skip


def influence(config: OracleConfig, weights: Any, ids: list[int], changed: int) -> list[float]:
    """Returns, for each position, how far its logits move when token `changed` is another one."""
    other = list(ids)
    other[changed] = (ids[changed] + 1) % config.vocab
    difference = gemma.logits(config, weights, ids) - gemma.logits(config, weights, other)
    return np.abs(difference).max(axis=-1).tolist()  # type: ignore[no-any-return]


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("everything", [False, True])
def test_two_tokens_by_hand(window: int | None, everything: bool) -> None:
    """Two tokens, two dimensions and one head, step by step in plain Python numbers.

    The query, key, value and output matrices are the identity, so a head is just the normed
    input; with H = 2 there is a single rotation, by 1 radian / factor at position 1.
    """
    pre, q_scale, k_scale, post, ffw, post_ffw, final = (
        [0.5, -0.25], [0.25, 1.0], [-0.5, 0.75], [1.5, 0.5], [0.25, 2.0], [-0.25, 0.5], [1.0, 3.0],
    )  # fmt: skip
    embedding = [[1.0, 0.5], [-0.25, 0.75], [2.0, -1.0]]
    gate, up, down = [0.5, -1.5], [1.25, 0.75], [0.8, -0.6]
    factor, scale, attention_cap, final_cap = 4.0, 0.7, 1.5, 2.5
    eye = np.eye(2)
    weights = {
        "transformer/embedder": {"input_embedding": np.array(embedding)},
        "transformer/final_norm": {"scale": np.array(final)},
        "transformer/layer_0/pre_attention_norm": {"scale": np.array(pre)},
        "transformer/layer_0/attn/qkv_einsum": {"w": np.array([[eye], [eye], [eye]])},
        "transformer/layer_0/attn/_query_norm": {"scale": np.array(q_scale)},
        "transformer/layer_0/attn/_key_norm": {"scale": np.array(k_scale)},
        "transformer/layer_0/attn/attn_vec_einsum": {"w": eye[None]},
        "transformer/layer_0/post_attention_norm": {"scale": np.array(post)},
        "transformer/layer_0/pre_ffw_norm": {"scale": np.array(ffw)},
        "transformer/layer_0/mlp/gating_einsum": {"w": np.array([[gate], [up]])},
        "transformer/layer_0/mlp/linear": {"w": np.array([down])},
        "transformer/layer_0/post_ffw_norm": {"scale": np.array(post_ffw)},
    }
    config = OracleConfig(
        layers=1, width=2, heads=1, kv_heads=1, head_dim=2, hidden=1, vocab=3, query_scale=scale,
        windows=(window,), rope_bases=(10_000.0,), rope_factors=(factor,),
        attention_softcap=attention_cap if everything else None,
        final_softcap=final_cap if everything else None,
        qk_norm=everything, post_norms=everything,
    )  # fmt: skip

    def norm(x: list[float], w: list[float]) -> list[float]:
        root = math.sqrt((x[0] * x[0] + x[1] * x[1]) / 2 + 1e-6)
        return [x[0] / root * (1 + w[0]), x[1] / root * (1 + w[1])]

    def turn(x: list[float], position: int) -> list[float]:
        cos, sin = math.cos(position / factor), math.sin(position / factor)
        return [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos]

    def dot(a: list[float], b: list[float]) -> float:
        return a[0] * b[0] + a[1] * b[1]

    def add(a: list[float], b: list[float]) -> list[float]:
        return [a[0] + b[0], a[1] + b[1]]

    ids = [2, 1]
    x = [[math.sqrt(2) * e for e in embedding[t]] for t in ids]
    v = [norm(row, pre) for row in x]
    q = [turn(norm(r, q_scale) if everything else r, p) for p, r in enumerate(v)]
    k = [turn(norm(r, k_scale) if everything else r, p) for p, r in enumerate(v)]
    expected = []
    for t in (0, 1):
        seen = [t] if t == 0 or window == 1 else [0, 1]
        scores = [dot(q[t], k[s]) * scale for s in seen]
        if everything:
            scores = [math.tanh(s / attention_cap) * attention_cap for s in scores]
        total = sum(math.exp(s) for s in scores)
        y = [0.0, 0.0]
        for s, score in zip(seen, scores, strict=True):
            y = add(y, [math.exp(score) / total * e for e in v[s]])
        y = add(x[t], norm(y, post) if everything else y)
        inner = norm(y, ffw)
        g = dot(inner, gate)
        g = g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
        z = [g * dot(inner, up) * e for e in down]
        y = norm(add(y, norm(z, post_ffw) if everything else z), final)
        row = [dot(y, e) for e in embedding]
        expected.append([math.tanh(r / final_cap) * final_cap for r in row] if everything else row)
    assert_allclose(gemma.logits(config, weights, ids), expected, rtol=1e-12)


def test_known_values_of_the_small_functions() -> None:
    """GELU is the tanh approximation (the exact one gives 0.841345 at 1), RMSNorm adds one."""
    assert_allclose(gemma.gelu(np.array([-1.0, 0.0, 1.0])), [-0.158808, 0, 0.841192], atol=1e-6)
    normed = gemma.rms_norm(np.array([3.0, 4.0]), np.array([0.0, 1.0]), 0.0)
    assert_allclose(normed, [3 / math.sqrt(12.5), 8 / math.sqrt(12.5)])
    assert_allclose(gemma.rms_norm(np.array([0.002]), np.array([0.0]), 12e-6), [0.5])
    assert_allclose(gemma.softcap(np.array([2.0, 1e9]), 2.0), [2 * math.tanh(1), 2.0])
    assert gemma.visible(4, 2).astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


# --- rotary embedding ----------------------------------------------------------------------------


def test_rope_pairs_the_halves_at_the_documented_timescales() -> None:
    """Unit vector i turns towards i + H/2 by position / base^(2i/H) / factor."""
    position, base, factor = 5, 100.0, 2.0
    turned = gemma.rope(np.eye(8)[None], np.array([position]), base, factor)[0]
    for i in range(4):
        angle = position / base ** (2 * i / 8) / factor
        expected = np.zeros(8)
        expected[i], expected[i + 4] = math.cos(angle), math.sin(angle)
        assert_allclose(turned[i], expected, atol=1e-12)


def test_rope_scores_depend_on_distance_only() -> None:
    """Shifting query and key together changes no score; moving them apart does."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 16))

    def score(query: int, key: int) -> float:
        turned = [gemma.rope(x, np.array([p]), 1e4, 8.0) for x, p in ((q, query), (k, key))]
        return float(np.sum(turned[0] * turned[1]))

    assert_allclose(score(107, 100), score(7, 0), rtol=1e-9)
    assert abs(score(7, 0) - score(6, 0)) > 1e-3


# --- attention -----------------------------------------------------------------------------------


@ALL
def test_a_token_never_changes_the_rows_before_it(name: str) -> None:
    """Causality: a change shows from its own row on; cutting the tail off shows nowhere."""
    config = PRESETS[name]
    weights, ids = draw(config)
    moved = influence(config, weights, ids, changed=10)
    assert max(moved[:10]) < 1e-12
    assert min(moved[10:]) > 1e-3
    head = gemma.logits(config, weights, ids[:10])
    assert_allclose(head, gemma.logits(config, weights, ids)[:10], atol=1e-11)


@pytest.mark.parametrize("window", [1, 2, 8])
def test_a_window_counts_the_query_itself(window: int) -> None:
    """In one local layer a token reaches the window - 1 positions after it, and no further."""
    config = one_layer(PRESETS["gemma3"], window)
    weights, ids = draw(config)
    moved = influence(config, weights, ids, changed=3)
    assert min(moved[3 : 3 + window]) > 1e-9
    assert max(moved[3 + window :]) < 1e-12


def test_a_global_layer_reaches_everything() -> None:
    """Without a window one layer carries a token to every later row."""
    config = one_layer(PRESETS["gemma3"], None)
    weights, ids = draw(config)
    assert min(influence(config, weights, ids, changed=3)[3:]) > 1e-9


def test_grouped_queries_share_consecutive_key_value_heads() -> None:
    """Copying each key/value head to its own two queries turns GQA into the same MHA."""
    config = PRESETS["gemma2"]
    weights, ids = draw(config)
    wide = dict(weights)
    for i in range(config.layers):
        path = f"transformer/layer_{i}/attn"
        k, v = weights[f"{path}/kv_einsum"]["w"]
        q = wide.pop(f"{path}/q_einsum")["w"]
        del wide[f"{path}/kv_einsum"]
        k, v = (np.stack([w[0], w[0], w[1], w[1]]) for w in (k, v))
        wide[f"{path}/qkv_einsum"] = {"w": np.stack([q, k, v])}
    expected = gemma.logits(replace(config, kv_heads=4), wide, ids)
    assert_allclose(gemma.logits(config, weights, ids), expected, atol=1e-11)


# --- layouts, softcaps, sampling -----------------------------------------------------------------


@ALL
def test_weights_have_the_layout_of_the_released_checkpoints(name: str) -> None:
    """Names, shapes and dtype are those of the flat Flax checkpoints."""
    c = PRESETS[name]
    weights, _ = draw(c)
    n, k, h, d, f = c.heads, c.kv_heads, c.head_dim, c.width, c.hidden
    layer = {
        "pre_attention_norm": (d,), "pre_ffw_norm": (d,), "attn/attn_vec_einsum": (n, h, d),
        "mlp/gating_einsum": (2, f, d), "mlp/linear": (f, d),
    }  # fmt: skip
    if n == k:
        layer |= {"attn/qkv_einsum": (3, n, d, h)}
    else:
        layer |= {"attn/q_einsum": (n, d, h), "attn/kv_einsum": (2, k, d, h)}
    if c.qk_norm:
        layer |= {"attn/_query_norm": (h,), "attn/_key_norm": (h,)}
    if c.post_norms:
        layer |= {"post_attention_norm": (d,), "post_ffw_norm": (d,)}
    expected: dict[str, tuple[int, ...]] = {
        f"transformer/layer_{i}/{path}": shape
        for i in range(c.layers)
        for path, shape in layer.items()
    }
    expected |= {"transformer/embedder": (c.vocab, d), "transformer/final_norm": (d,)}
    assert {path: next(iter(leaf.values())).shape for path, leaf in weights.items()} == expected
    assert {w.dtype for leaf in weights.values() for w in leaf.values()} == {np.dtype("float32")}


@ALL
def test_both_gating_layouts_mean_the_same(name: str) -> None:
    """(2, D, F) and (2, F, D) give the same logits."""
    config = PRESETS[name]
    weights, ids = draw(config, gating_transposed=False)
    assert weights["transformer/layer_0/mlp/gating_einsum"]["w"].shape == (
        2,
        config.width,
        config.hidden,
    )
    turned = {
        path: {"w": leaf["w"].swapaxes(1, 2)} if path.endswith("gating_einsum") else leaf
        for path, leaf in weights.items()
    }
    expected = gemma.logits(config, turned, ids)
    assert_allclose(gemma.logits(config, weights, ids), expected, atol=1e-11)


def test_final_softcap_bounds_the_logits_and_keeps_their_order() -> None:
    """The cap bites, and the argmax stays."""
    config = PRESETS["gemma2"]
    weights, ids = draw(config)
    assert config.final_softcap is not None
    capped = gemma.logits(config, weights, ids)
    free = gemma.logits(replace(config, final_softcap=None), weights, ids)
    assert np.abs(capped).max() < config.final_softcap < np.abs(free).max()
    assert np.array_equal(capped.argmax(axis=-1), free.argmax(axis=-1))


@ALL
def test_greedy_follows_the_argmax_and_does_not_get_stuck(name: str) -> None:
    """Greedy tokens are the argmax of each row, and are varied enough to tell models apart."""
    config = PRESETS[name]
    weights, ids = draw(config)
    out = gemma.greedy(config, weights, ids, 12)
    rows = gemma.logits(config, weights, ids + out)
    assert out == rows[len(ids) - 1 : -1].argmax(axis=-1).tolist()
    assert len(set(out)) >= 5
    assert gemma.greedy(config, weights, ids, 0) == []


@ALL
def test_logits_are_float64_with_a_spread_of_several_units(name: str) -> None:
    """An argmax is meaningful."""
    config = PRESETS[name]
    weights, ids = draw(config)
    rows = gemma.logits(config, weights, ids)
    assert rows.shape == (len(ids), config.vocab)
    assert rows.dtype == np.float64
    assert 2.0 < rows.std() < 4.0


# --- a mistake anywhere shows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[(name, {"query_scale": 0.2}) for name in sorted(PRESETS)],
        ("gemma1-mqa", {"rope_bases": (1e6,) * 3}),
        ("gemma1-mha", {"windows": (8,) * 3}),
        ("gemma2", {"query_scale": 16**-0.5}),
        ("gemma2", {"windows": (None, 8) * 2}),
        ("gemma2", {"windows": (7, None) * 2}),
        ("gemma2", {"windows": (9, None) * 2}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"final_softcap": None}),
        ("gemma2", {"post_norms": False}),
        ("vaultgemma", {"windows": (None,) * 4}),
        ("vaultgemma", {"attention_softcap": None}),
        ("vaultgemma", {"final_softcap": None}),
        ("gemma3", {"windows": (9,) * 5 + (None,) + (9,) * 2}),
        ("gemma3", {"windows": (8,) * 8}),
        ("gemma3", {"windows": (8,) * 5 + (None,) * 3}),
        ("gemma3", {"rope_bases": (1e4,) * 8}),
        ("gemma3", {"rope_factors": (1.0,) * 8}),
        ("gemma3", {"rope_factors": (8.0,) * 8}),
        ("gemma3", {"qk_norm": False}),
        ("gemma3", {"post_norms": False}),
        ("gemma3-small", {"rope_bases": (1e4,) * 8}),
        ("gemma3-small", {"qk_norm": False}),
    ],
)
def test_every_setting_moves_the_logits(name: str, change: dict[str, Any]) -> None:
    """The presets are sensitive: one wrong setting is visible far above rounding error."""
    config = PRESETS[name]
    weights, ids = draw(config)
    wrong = gemma.logits(replace(config, **change), weights, ids)
    assert np.abs(gemma.logits(config, weights, ids) - wrong).max() > 0.1


def test_small_weights_make_epsilon_visible() -> None:
    """With small matrices a wrong epsilon shows."""
    config = PRESETS["gemma3"]
    weights, ids = draw(config, scale=0.02)
    wrong = gemma.logits(replace(config, rms_eps=1e-5), weights, ids)
    assert np.abs(gemma.logits(config, weights, ids) - wrong).max() > 0.1


@pytest.mark.parametrize(
    "change", [{"windows": (8,)}, {"kv_heads": 3}, {"head_dim": 15}, {"rope_bases": ()}]
)
def test_inconsistent_settings_are_refused(change: dict[str, Any]) -> None:
    """A config checks its own shapes."""
    with pytest.raises(ValueError, match=r"heads|entry"):
        replace(PRESETS["gemma3"], **change)


@pytest.mark.parametrize("ids", [[-1], [307], [[1, 2]]])
def test_ids_outside_the_vocabulary_are_refused(ids: Any) -> None:
    """A negative id would otherwise wrap around silently."""
    config = PRESETS["gemma1-mqa"]
    with pytest.raises(ValueError, match="token_ids"):
        gemma.logits(config, draw(config)[0], ids)
