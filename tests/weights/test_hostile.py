"""Damaged and hostile directories: a clear error at once, never a crash, a hang or a huge array."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.weights.open import open_weights
from testing.counts import cases
from testing.hugging_face import write_hf
from testing.tiny import (
    load_flat,
    tiny_config,
    tiny_weights,
    write_gguf,
    write_orbax,
    write_tokenizer,
)

pytestmark = pytest.mark.slow

NAME = "gemma3-small"
LIMIT_S = 2.0
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def _orbax(path: Path) -> Path:
    return write_orbax(path, tiny_weights(NAME))


def _orbax_apart(path: Path) -> Path:
    return write_orbax(path, tiny_weights(NAME), use_ocdbt=False)


def _hf(path: Path) -> Path:
    return write_hf(path, NAME, tiny_weights(NAME), shards=2)


def _gguf(path: Path) -> Path:
    return write_gguf(path, NAME, tiny_weights(NAME))


def _converted(path: Path) -> Path:
    done = CliRunner().invoke(main, ["convert", str(_gguf(path.with_name("source"))), str(path)])
    assert done.exit_code == 0, done.output
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "orbax": _orbax,
    "orbax, a directory each": _orbax_apart,
    "hugging face": _hf,
    "converted": _converted,
    "gguf": _gguf,
}


@pytest.fixture(scope="module", params=WRITERS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and its tokenizer."""
    path = WRITERS[request.param](tmp_path_factory.mktemp("good") / "checkpoint")
    write_tokenizer(path.parent / "tokenizer.model", tiny_config(NAME).vocab)
    return path.parent


def _load(path: Path) -> None:
    """All that is done with a checkpoint before the model runs, but for the compiling."""
    opened = open_checkpoint(path / "checkpoint")
    load_flat(opened.weights, opened.config)
    opened.tokenizer.decode(opened.tokenizer.encode("a <b> \x00 é🎉"))
    opened.tokenizer.decode(range(opened.tokenizer.vocab_size))


def _damage(path: Path, data: st.DataObject) -> None:
    """One file of the directory flipped, cut, grown, emptied or gone."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    match data.draw(st.sampled_from(["flip", "flip the beginning", "cut", "grow", "remove"])):
        case "cut":
            raw = raw[: data.draw(st.integers(0, max(0, len(raw) - 1)))]
        case "grow":
            raw += data.draw(st.binary(min_size=1, max_size=64))
        case "remove":
            file.unlink()
            return
        case how:
            end = min(len(raw), 2000) if how != "flip" else len(raw)
            for _ in range(data.draw(st.integers(1, 4)) if raw else 0):
                raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)


@settings(
    max_examples=cases(20, 100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_to_a_file_crashes_or_hangs(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, path)
    _damage(path, data)
    began = time.monotonic()
    with contextlib.suppress(ModelLoadError):  # any other exception fails the test
        _load(path)
    assert time.monotonic() - began < LIMIT_S


def _refusal(path: Path) -> str:
    """The error, which must come at once and before anything large is allocated."""
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ModelLoadError) as error:
        open_weights(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    assert time.monotonic() - began < LIMIT_S
    return str(error.value)


def _edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": None}, "model_type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": "8"}, "num_hidden_layers is '8'"),
        ({"hidden_size": 41}, "hidden_size is 41: its tensors have 40"),
        ({"head_dim": 10**8}, "head_dim is 100000000: its heads have"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"rope_theta": None}, "rope_theta is None"),
        ({"query_pre_attn_scalar": None}, "query_pre_attn_scalar is None"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type 'yarn'"),
        ({"rope_scaling": [1]}, "rope parameters are no objects"),
        ({"rope_parameters": {"full_attention": 1}}, "rope parameters are no objects"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 8}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_activation": "relu"}, "hidden_activation is relu"),
        ({"hidden_act": "silu"}, "hidden_act is silu"),
        ({"rope_parameters": [1]}, "rope parameters are no objects"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:40],
)
def test_a_config_that_cannot_be_or_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = _hf(tmp_path / "hf")
    _edit(path / "config.json", **changes)
    assert words in _refusal(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\xff" * 8, "damaged"),
        (struct.pack("<Q", 2**62) + b"{}", "damaged"),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
        (struct.pack("<Q", 2) + b"{}", "no tensor"),
        (b"PK\x03\x04" + b"\0" * 40, "damaged"),
        (POINTER, "git lfs pull"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(
    tmp_path: Path, header: bytes, words: str
) -> None:
    path = _hf(tmp_path / "hf")
    shard = min(path.glob("*.safetensors"))
    shard.write_bytes(header)
    message = _refusal(path)
    assert words in message
    assert shard.name in message


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "hf", NAME, tiny_weights(NAME))
    header = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    raw = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert "model.safetensors" in _refusal(path)


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    path = _hf(tmp_path / "hf")
    index = path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    first = min(places)
    _edit(index, weight_map={**places, first: "../../etc/passwd"})
    assert "no file's name" in _refusal(path)
    _edit(index, weight_map={**places, first: "model-00009-of-00009.safetensors"})
    assert "model-00009-of-00009.safetensors: not there" in _refusal(path)
    _edit(index, weight_map={**places, "model.more.weight": places[first]})
    assert "no tensor model.more.weight" in _refusal(path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    path = _hf(tmp_path / "hf")
    for shard in [*path.glob("*.safetensors"), path / "model.safetensors.index.json"]:
        shard.unlink()
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert "pickled weights are never read" in _refusal(path)


@pytest.mark.parametrize("kept", ["config.json", "adapter_model.safetensors"])
def test_an_adapter_is_refused_with_what_to_do(tmp_path: Path, kept: str) -> None:
    for name in (kept, "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    assert "merge it into its base model" in _refusal(tmp_path)


def test_files_that_are_only_a_part_are_told_apart(tmp_path: Path) -> None:
    for name, words in {
        "pytorch_model.bin": "pickled weights are never read",
        "archive.tar.gz": "extract it",
        "config.json": "name its directory",
        "tokenizer.model": "name its directory",
        "model.safetensors": "name its directory",
    }.items():
        (tmp_path / name).write_bytes(b"12345678")
        assert words in _refusal(tmp_path / name)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.ckpt").write_bytes(b"")
    assert "pickled weights are never read" in _refusal(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text("{}")
    assert "pickled weights are never read" in _refusal(tmp_path / "x")


def test_an_interrupted_save_or_download_is_told(tmp_path: Path) -> None:
    path = _orbax(tmp_path / "a.orbax-checkpoint-tmp-0")
    assert "Orbax was interrupted" in _refusal(path)
    path = path.rename(tmp_path / "checkpoint")
    write_tokenizer(tmp_path / "tokenizer.model", tiny_config(NAME).vocab)
    largest = max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="is the download complete"):
        _load(tmp_path)


def test_an_orbax_array_larger_than_its_files_is_refused(tmp_path: Path) -> None:
    """A header may promise petabytes, which compress well when they are not there."""
    path = _orbax_apart(tmp_path / "orbax")
    [header] = path.rglob("embedder.input_embedding/.zarray")
    _edit(header, shape=[2**40, 40])
    message = _refusal(path)
    assert "embedder/input_embedding [1099511627776, 40]" in message


def test_an_array_of_no_floats_is_named(tmp_path: Path) -> None:
    weights: Any = tiny_weights(NAME)
    linear = weights["transformer/layer_2/mlp/linear"]
    linear["w"] = linear["w"].astype(np.int8)
    message = _refusal(write_orbax(tmp_path / "orbax", weights))
    assert "layer_2/mlp/linear/w is stored as int8" in message


def test_safetensors_of_no_floats_are_named(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "hf", NAME, tiny_weights(NAME), dtype=np.int8)
    assert "is stored as I8" in _refusal(path)


def test_a_missing_chunk_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    path = _orbax_apart(tmp_path / "checkpoint")
    write_tokenizer(tmp_path / "tokenizer.model", tiny_config(NAME).vocab)
    [chunk] = path.rglob("layer_1/attn/q_einsum.w/0.0.0")
    chunk.unlink()
    with pytest.raises(ModelLoadError, match="layer_1/attn/q_einsum/w cannot be read"):
        _load(tmp_path)


def test_a_chunk_larger_than_its_array_is_refused(tmp_path: Path) -> None:
    """Decoding it would fill the memory, whatever the array's own shape."""
    path = _orbax_apart(tmp_path / "orbax")
    [header] = path.rglob("final_norm.scale/.zarray")
    _edit(header, chunks=[750_000_000])
    assert "final_norm/scale [40] is cut in chunks of [750000000]" in _refusal(path)


@pytest.mark.parametrize("writer", [_hf, _orbax_apart])
def test_a_pipe_is_not_waited_for(tmp_path: Path, writer: Callable[[Path], Path]) -> None:
    path = writer(tmp_path / "checkpoint")
    for name in ("config.json", "transformer/final_norm.scale/.zarray"):
        if (path / name).exists():
            (path / name).unlink()
            os.mkfifo(path / name)
    assert "not a regular file" in _refusal(path)


def test_a_header_of_a_million_entries_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "busy.gguf"
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 10**6) + entry * 10**6)
    assert "1000000 metadata entries" in _refusal(path)
    path = _hf(tmp_path / "hf")
    shard = min(path.glob("*.safetensors"))
    shard.write_bytes(struct.pack("<Q", 70 << 20) + b" " * (70 << 20))
    assert "its header has 73400320 bytes" in _refusal(path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 99}', '{"format": 1, "config": {}}'])
def test_a_damaged_description_of_a_converted_checkpoint_is_refused(
    tmp_path: Path, damage: str
) -> None:
    path = _orbax(tmp_path / "converted")
    (path / "gemma-server.json").write_text(damage)
    assert "gemma-server.json" in _refusal(path)


def test_directories_that_hold_no_checkpoint_say_what_is_there(tmp_path: Path) -> None:
    assert "no checkpoint in it" in _refusal(tmp_path)
    assert "No such file" in _refusal(tmp_path / "nowhere")
    (tmp_path / "a.gguf").write_bytes(b"")
    assert "a.gguf" in _refusal(tmp_path)
    _hf(tmp_path / "one")
    assert open_weights(tmp_path).path == tmp_path / "one"
    _orbax(tmp_path / "two")
    assert "name one: one, two" in _refusal(tmp_path)
    assert "name its directory" in _refusal(min((tmp_path / "one").glob("*.safetensors")))
    (tmp_path / "pointer.gguf").write_bytes(POINTER)
    assert "git lfs pull" in _refusal(tmp_path / "pointer.gguf")


OPEN = """
import sys
from pathlib import Path
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
try:
    open_checkpoint(Path(sys.argv[1]))
    print("opened")
except ModelLoadError as error:
    print("refused")
assert not {"jax", "jaxlib", "flax", "orbax"} & set(sys.modules)
"""


@pytest.mark.parametrize("writer", [_orbax, _hf, _gguf])
def test_headers_are_checked_before_jax_is_imported(
    tmp_path: Path, writer: Callable[[Path], Path]
) -> None:
    def outcome() -> str:
        command = [sys.executable, "-c", OPEN, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    path = writer(tmp_path / "checkpoint")
    write_tokenizer(tmp_path / "tokenizer.model", tiny_config(NAME).vocab)
    assert outcome() == "opened"
    assert open_checkpoint(path).config.vocab == tiny_config(NAME).vocab
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        file.write_bytes(file.read_bytes()[:50])
    assert outcome() == "refused"
