"""Hostile GGUF headers: a clear error at once, never a crash, a hang or a huge allocation."""

import contextlib
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_server.errors import ModelLoadError
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.gguf.gemma import GgufWeights
from testing.counts import cases
from testing.oracle.gemma import PRESETS
from testing.tiny import read_tensor, tiny_weights, write_gguf

NAME = "gemma3"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", NAME, tiny_weights(NAME))


def test_metadata_and_tensors_are_read_as_written(good: Path) -> None:
    file = GgufFile(good)
    assert file.metadata["general.architecture"] == "gemma3"
    assert file.metadata["gemma3.block_count"] == PRESETS[NAME].layers
    expected = tiny_weights(NAME)["transformer/embedder"]["input_embedding"]
    np.testing.assert_array_equal(read_tensor(file, "token_embd.weight"), expected)


def test_quantised_tensors_match_the_gguf_package(tmp_path: Path) -> None:
    """Whatever type a tensor has, reading it in pieces equals decoding it in one go."""
    import gguf
    from gguf.quants import dequantize, quantize

    values = np.random.default_rng(0).standard_normal((700, 256)).astype(np.float32)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F16", "BF16", "Q8_0", "Q4_0", "Q5_1")]
    path = tmp_path / "quantized.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for kind in kinds:
        writer.add_tensor(kind.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    for kind in kinds:
        expected = dequantize(quantize(values, kind), kind)
        np.testing.assert_array_equal(read_tensor(file, kind.name), expected)


def _open(path: Path) -> None:
    GgufWeights(path)


def _say(monkeypatch: pytest.MonkeyPatch, good: Path, changes: dict[str, object]) -> None:
    """Have the good file's header say something else."""
    file = GgufFile(good)
    metadata = {**file.metadata, **changes}
    monkeypatch.setattr(
        "gemma_server.weights.gguf.container._Header.parse", lambda self: (metadata, file.tensors)
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_says_so(good: Path, tmp_path: Path, share: float) -> None:
    data = good.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf"):
        _open(cut)


def test_a_file_that_has_grown_says_so(good: Path, tmp_path: Path) -> None:
    """Something else was written behind it; what, nobody knows."""
    grown = tmp_path / "grown.gguf"
    grown.write_bytes(good.read_bytes() + b"\0" * 64)
    with pytest.raises(ModelLoadError, match=r"grown\.gguf.*64 bytes follow its last tensor"):
        _open(grown)


def test_one_part_of_several_says_how_to_join_them(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(monkeypatch, good, {"split.count": 3})
    with pytest.raises(ModelLoadError, match="one of 3 parts; join them"):
        _open(good)
    monkeypatch.undo()
    _say(monkeypatch, good, {"split.count": 0})  # what joining leaves
    _open(good)


@pytest.mark.parametrize(
    ("what", "header"),
    [
        ("not GGUF", b"PK\x03\x04" + b"\0" * 60),
        ("another version", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
        ("2**63 metadata entries", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + b"\0" * 60),
        ("2**63 tensors", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + b"\0" * 60),
        ("a key of 2**62 bytes", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"\0" * 60),
        (
            "an array of 2**61 numbers",
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**61),
        ),
        (
            "arrays of arrays",
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) * 9,
        ),
        (
            "a tensor whose dimensions multiply to more than the file",
            b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t"
            + struct.pack("<IQQQQIQ", 4, 2**32, 2**32, 2**32, 2**32, 0, 0),
        ),
        (
            "a tensor that lies beyond the end",
            b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t"
            + struct.pack("<IQIQ", 1, 4, 0, 2**62) + b"\0" * 64,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_header_that_lies_is_refused_before_anything_is_allocated(
    tmp_path: Path, what: str, header: bytes
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(header)
    tracemalloc.start()
    with pytest.raises(ModelLoadError):
        _open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@settings(
    max_examples=cases(100, 300),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_flipped_byte_in_a_header_crashes_or_hangs(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(good.read_bytes())
    header = 14_000  # metadata and tensor table end before that
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(raw)
    began = time.monotonic()
    with contextlib.suppress(ModelLoadError):  # any other exception fails the test
        _ = GgufWeights(path).tokenizer_pieces
    assert time.monotonic() - began < 2


def test_another_model_is_refused_by_its_name(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match="'llama'"):
        _open(path)


@pytest.mark.parametrize("key", ["general.architecture", "split.count", "gemma3.rope.scaling.type"])
@pytest.mark.parametrize("value", [np.zeros(3), ["a"], 7.5, "other"])
def test_metadata_of_another_type_is_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    _say(monkeypatch, good, {key: value})
    with pytest.raises(ModelLoadError, match=r"good\.gguf"):
        _open(good)


def test_no_scaling_means_a_factor_of_one(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def factors() -> list[float]:
        return [layer.rope_factor for layer in GgufWeights(good).config.layers]

    assert max(factors()) == 8.0
    _say(monkeypatch, good, {"gemma3.rope.scaling.type": "none"})
    assert max(factors()) == 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 4),
        ("block_count", 20_000),
        ("context_length", 300.5),
        ("attention.head_count_kv", 3),
        ("attention.key_length", 15),
        ("attention.sliding_window", 0),
        ("rope.freq_base", float("nan")),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(
    good: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float
) -> None:
    _say(monkeypatch, good, {f"gemma3.{key}": value})
    with pytest.raises(ModelLoadError, match=rf"{key}|sizes"):
        _open(good)


def test_norms_of_another_generation_are_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GgufFile(good)
    tensors = {name: tensor for name, tensor in file.tensors.items() if "attn_q_norm" not in name}
    monkeypatch.setattr(
        "gemma_server.weights.gguf.container._Header.parse", lambda self: (file.metadata, tensors)
    )
    with pytest.raises(ModelLoadError, match="norms"):
        _open(good)
