"""The table of released models, and how a checkpoint's shapes find their row."""

from dataclasses import replace

import pytest

from gemma_server.model.config import Experts, GemmaConfig, LayerConfig, stays_float32
from gemma_server.model.presets import RELEASED, Preset, Shape, preset_for

# Total parameters as Google publishes them (Gemma 1, 2 and 3 technical reports, tables of
# embedding and non-embedding parameters), in millions.
PUBLISHED_MILLIONS = {
    "gemma-2b": 524 + 1982,
    "gemma-7b": 787 + 7751,
    "gemma-2-2b": 590 + 2024,
    "gemma-2-9b": 918 + 8324,
    "gemma-2-27b": 1180 + 26047,
    "vaultgemma-1b": 1040,  # its model card
    "gemma-3-270m": 168 + 100,
    "gemma-3-1b": 302 + 698,
    "gemma-3-4b": 675 + 3209,
    "gemma-3-12b": 1012 + 10759,
    "gemma-3-27b": 1416 + 25600,
    # The model card: effective parameters and the embeddings per layer.
    "gemma-4-e2b": 2280 + 2350,
    "gemma-4-e4b": 4640 + 2820,
    "gemma-4-12b": 11_900,
    "gemma-4-26b-a4b": 25_200,
    "gemma-4-31b": 30_700,
}


def _shape(config: Preset) -> Shape:
    names = Shape.__dataclass_fields__
    return Shape(**{name: getattr(config, name) for name in names})


@pytest.mark.parametrize("config", RELEASED, ids=lambda config: config.name)
def test_the_row_has_as_many_parameters_as_published(config: Preset) -> None:
    assert config.config().parameters / 1e6 == pytest.approx(
        PUBLISHED_MILLIONS[config.name], rel=0.01
    )


@pytest.mark.parametrize("config", RELEASED, ids=lambda config: config.name)
def test_its_own_shape_finds_each_row(config: Preset) -> None:
    assert preset_for(_shape(config)) == config


def test_the_caps_tell_vaultgemma_from_gemma_1() -> None:
    """No tensor does, where the size is another than the released one's."""
    [row] = [row for row in RELEASED if row.name == "vaultgemma-1b"]
    other = replace(_shape(row), layers=3)
    names = [preset_for(other, capped=capped).name for capped in (None, False, True)]
    assert names == ["gemma-3x1152", "gemma-3x1152", "vaultgemma-3x1152"]
    assert preset_for(_shape(row), capped=False).final_softcap is None


@pytest.mark.parametrize(
    ("name", "fewer"),
    [
        ("gemma-2b", {"layers": 3}),
        ("gemma-7b", {"layers": 3}),
        ("gemma-2-2b", {"layers": 3}),
        ("gemma-3-1b", {"layers": 3}),
        ("gemma-4-e2b", {"layers": 10, "sharing_layers": 4}),
        ("gemma-4-26b-a4b", {"layers": 6}),
    ],
)
def test_the_leaves_are_those_that_the_modules_declare(name: str, fewer: dict[str, int]) -> None:
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from gemma_server.model.transformer import abstract_params

    [preset] = [row for row in RELEASED if row.name == name]
    row = replace(preset, **fewer).config()  # type: ignore[arg-type]
    declared = flatten_dict(abstract_params(row, jnp.int8), sep="/")
    assert row.leaf_shapes == {path: leaf.shape for path, leaf in declared.items()}
    assert {path for path, leaf in declared.items() if leaf.dtype == jnp.float32} == {
        path for path in declared if stays_float32(path)
    }


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("layers", 0),
        ("heads", 3),
        ("head_dim", 255),
        ("width", 2**40),
        ("global_every", 0),
        ("window", -5),
        ("context_length", -1),
        ("norm_eps", float("nan")),
        ("query_scale", float("inf")),
        ("final_softcap", 0.0),
    ],
)
def test_numbers_that_no_gemma_could_have_are_refused(field: str, number: float) -> None:
    [row] = [row for row in RELEASED if row.name == "gemma-2-2b"]
    with pytest.raises(ValueError, match=field):
        replace(row, **{field: number}).config()  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_layer", [1, 2, 7, -1])
def test_keys_and_values_come_from_an_earlier_layer_that_has_them(kv_layer: int) -> None:
    own = LayerConfig(heads=4, kv_heads=2, head_dim=8, hidden=48)
    layers = (own, replace(own, kv_layer=kv_layer), own)
    with pytest.raises(ValueError, match=f"keys and values of layer {kv_layer}"):
        GemmaConfig("x", 8, 8, 8, 1.0, layers)


def test_experts_end_where_a_group_of_rows_does() -> None:
    [row] = [row for row in RELEASED if row.name == "gemma-4-26b-a4b"]
    with pytest.raises(ValueError, match="such experts"):
        replace(row, experts=Experts(8, 2, 20)).config()
    with pytest.raises(ValueError, match="such experts"):
        Experts(8, 9, 16)


def test_gemma4_e2b_caches_15_of_its_35_layers() -> None:
    [row] = [row.config() for row in RELEASED if row.name == "gemma-4-e2b"]
    assert row.cached_layers == list(range(15))
    assert {layer.kv_layer for layer in row.layers if layer.window} == {None, 13}
    assert {layer.kv_layer for layer in row.layers if not layer.window} == {None, 14}
    assert row.cached_numbers_per_token * 2 == 18 * 1024  # bytes in bfloat16


def test_an_unknown_size_takes_its_family_s_ways() -> None:
    [row] = [row for row in RELEASED if row.name == "gemma-2-27b"]
    shape = Shape(**{**_shape(row).__dict__, "layers": 3, "head_dim": 64})
    config = preset_for(shape)
    assert config.layers == 3
    assert config.attention_softcap == 50.0
    assert config.query_scale == 64**-0.5
    assert [layer.window for layer in config.config().layers] == [4096, None, 4096]


def test_gemma3_attends_globally_in_every_sixth_layer() -> None:
    [row] = [row for row in RELEASED if row.name == "gemma-3-1b"]
    windows = [layer.window for layer in row.config().layers]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
