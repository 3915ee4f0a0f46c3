"""How a checkpoint's files say that its answers are best sampled, in every format."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.weights.converted import DESCRIPTION
from gemma_server.weights.open import open_weights
from gemma_server.weights.sampling_defaults import SamplingDefaults
from testing.hugging_face import write_hf
from testing.oracle.gemma import PRESETS
from testing.tiny import tiny_weights, write_gguf, write_orbax, write_tokenizer

NAME = "gemma1-mqa"
GEMMA4_S = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
NOTHING = SamplingDefaults()


def hugging_face(folder: Path, said: dict[str, Any]) -> Path:
    path = write_hf(folder / "hf", NAME, tiny_weights(NAME))
    write_tokenizer(path / "tokenizer.model", PRESETS[NAME].vocab)
    (path / "generation_config.json").write_text(json.dumps(said))
    return path


def gguf(folder: Path, said: dict[str, Any]) -> Path:
    metadata = {f"general.sampling.{key}": value for key, value in said.items()}
    return write_gguf(folder / "m.gguf", NAME, tiny_weights(NAME), metadata)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (GEMMA4_S, SamplingDefaults(1.0, 64, 0.95)),
        ({"top_k": 0, "temperature": 0}, SamplingDefaults(0.0, 0, None)),
        ({"do_sample": None, "top_p": 1, "top_k": None}, SamplingDefaults(None, None, 1.0)),
        (GEMMA4_S | {"do_sample": False}, NOTHING),
        ({"do_sample": False, "temperature": "hot"}, NOTHING),
        ({}, NOTHING),
    ],
)
def test_a_directory_s_are_those_of_its_generation_config(
    tmp_path: Path, said: dict[str, Any], expected: SamplingDefaults
) -> None:
    assert open_weights(hugging_face(tmp_path, said)).sampling == expected


def test_without_that_file_there_are_none(tmp_path: Path) -> None:
    assert open_weights(write_hf(tmp_path / "hf", NAME, tiny_weights(NAME))).sampling == NOTHING
    assert open_weights(write_orbax(tmp_path / "orbax", tiny_weights(NAME))).sampling == NOTHING
    assert open_weights(gguf(tmp_path, {})).sampling == NOTHING


def test_gguf_says_the_same_in_float32(tmp_path: Path) -> None:
    said = {"temp": 0.7, "top_k": 64, "top_p": 0.95}
    assert open_weights(gguf(tmp_path, said)).sampling == SamplingDefaults(0.7, 64, 0.95)


WRONG: list[tuple[str, Any]] = [
    *[("temperature", value) for value in ("hot", -0.1, float("nan"), 1e15, True)],
    *[("top_k", value) for value in (-1, 0.5, "64", True, [64, 40])],
    *[("top_p", value) for value in (0, -0.5, 1.01, "all", float("nan"))],
    *[("do_sample", value) for value in ("no", 0)],
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_that_nothing_could_be_sampled_with_is_named(
    tmp_path: Path, key: str, value: Any
) -> None:
    path = hugging_face(tmp_path, {key: value})
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: {key} is "):
        open_weights(path)


@pytest.mark.parametrize(("key", "value"), [("temp", -1.0), ("top_k", -1), ("top_p", 1.5)])
def test_so_is_one_of_a_gguf(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelLoadError, match=rf"general\.sampling\.{key} is "):
        open_weights(gguf(tmp_path, {key: value}))


@pytest.mark.slow
def test_convert_keeps_and_inspect_lists_them(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    path, target = hugging_face(tmp_path, GEMMA4_S), tmp_path / "converted"
    run("convert", path, target)
    for checkpoint in (path, target):
        assert open_checkpoint(checkpoint).sampling == SamplingDefaults(1.0, 64, 0.95)
        assert "temperature 1, top-k 64, top-p 0.95" in run("inspect", checkpoint)

    file = target / DESCRIPTION
    description = json.loads(file.read_text())
    del description["sampling"]  # as an older version wrote it
    file.write_text(json.dumps(description))
    assert open_checkpoint(target).sampling == NOTHING
    assert "its files recommend nothing" in run("inspect", target)
    for wrong, words in (([1], "sampling is no object"), ({"top_p": 2}, "top_p is 2")):
        file.write_text(json.dumps(description | {"sampling": wrong}))
        with pytest.raises(ModelLoadError, match=words):
            open_weights(target)
