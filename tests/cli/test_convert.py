"""`gemma-server convert` and `inspect`: the same weights in another place, and what they are."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from gemma_server.cli.convert import lossless_dtype
from gemma_server.cli.main import main
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint
from testing.hugging_face import write_hf
from testing.oracle.gemma import PRESETS
from testing.tiny import load_flat, tiny_weights, write_gguf, write_orbax, write_tokenizer

NAME = "gemma2"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _leaves(checkpoint: Checkpoint, dtype: Any = np.float32) -> dict[str, npt.NDArray[Any]]:
    return load_flat(checkpoint.weights, checkpoint.config, dtype)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", NAME, tiny_weights(NAME))


@pytest.fixture
def hf16(tmp_path: Path) -> Path:
    path = write_hf(tmp_path / "hf", NAME, tiny_weights(NAME), dtype=ml_dtypes.bfloat16)
    write_tokenizer(path / "tokenizer.model", PRESETS[NAME].vocab)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_checkpoint_holds_the_same_weights(
    gguf: Path, tmp_path: Path, dtype: str
) -> None:
    target = tmp_path / "converted"
    done = _run("convert", gguf, target, "--dtype", dtype)
    assert done.exit_code == 0, done.output
    assert str(target) in done.output
    before, after = open_checkpoint(gguf), open_checkpoint(target)
    assert after.config == before.config  # caps, windows and scales too, which no tensor shows
    assert after.tokenizer.encode("a <b> c") == before.tokenizer.encode("a <b> c")
    expected = _leaves(before, np.dtype(dtype))
    for leaf, array in _leaves(after, np.dtype(dtype)).items():
        np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)


@pytest.mark.slow
def test_orbax_itself_reads_what_was_converted(gguf: Path, tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    target = tmp_path / "converted"
    assert _run("convert", gguf, target).exit_code == 0
    tree: Any = ocp.PyTreeCheckpointer().restore(target)
    expected = _leaves(open_checkpoint(gguf))
    np.testing.assert_array_equal(tree["embedder"]["embedding"], expected["embedder/embedding"])
    kernel = tree["layer_1"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel, expected["layer_1/attention/qkv/kernel"])


@pytest.mark.slow
def test_converting_loses_nothing_unless_told_to(gguf: Path, hf16: Path, tmp_path: Path) -> None:
    assert lossless_dtype(open_checkpoint(gguf)) == "float32"
    assert lossless_dtype(open_checkpoint(hf16)) == "bfloat16"
    target = tmp_path / "converted"
    assert _run("convert", hf16, target).exit_code == 0
    assert "bfloat16" in open_checkpoint(target).weights.stored
    expected = _leaves(open_checkpoint(hf16))
    for leaf, array in _leaves(open_checkpoint(target)).items():
        np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)


@pytest.mark.slow
def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = tiny_weights(NAME)
    del weights["transformer/layer_1/mlp/linear"]
    source = write_orbax(tmp_path / "orbax", weights)
    write_tokenizer(tmp_path / "tokenizer.model", PRESETS[NAME].vocab)
    done = _run("convert", source, tmp_path / "target")
    assert done.exit_code == 3
    assert "layer_1" in done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"orbax", "tokenizer.model"}


@pytest.mark.slow
def test_what_was_half_written_is_removed(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemma_server.cli.convert.write_description", full)
    done = _run("convert", gguf, tmp_path / "target")
    assert done.exit_code == 2
    assert "No space left on device" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.slow
def test_a_relative_target_is_served_from_where_it_was_made(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert _run("convert", gguf, "../target").exit_code == 0
    assert _run("inspect", "../target").exit_code == 0


def test_a_target_that_exists_is_not_touched(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = _run("convert", gguf, tmp_path / "mine")
    assert done.exit_code == 2
    assert "exists" in done.output
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert _run("convert", gguf, tmp_path / "dangling").exit_code == 2
    orphan = _run("convert", gguf, tmp_path / "no" / "parent")
    assert orphan.exit_code == 2
    assert "there is no directory" in orphan.output


def test_inspect_says_what_a_checkpoint_is_and_needs(gguf: Path) -> None:
    done = _run("inspect", gguf)
    assert done.exit_code == 0
    oracle = PRESETS[NAME]
    for words in (
        "gemma-2-4x48",
        "GGUF",
        "F32",
        f"{oracle.layers} of width {oracle.width}, feed-forward {oracle.hidden}",
        "512 tokens; 2 of 4 layers are local and see 8",
        "model.gguf, 307 pieces, ends at 1, 5",
        "kB in float32",
        "8 slots of 512 tokens",
    ):
        assert words in done.output, done.output


@pytest.mark.parametrize("command", [["inspect"], ["convert", "{}", "{}/target"]])
def test_what_is_no_checkpoint_ends_with_one_line(tmp_path: Path, command: list[str]) -> None:
    arguments = [part.format(tmp_path) for part in command] or []
    done = _run(*(arguments if len(arguments) > 1 else [*arguments, tmp_path]))
    assert done.exit_code == 3
    assert "no checkpoint in it" in done.output
    assert done.output.count("\n") == 1
