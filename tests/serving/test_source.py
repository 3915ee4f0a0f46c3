"""A directory of versions: the cases of TensorFlow Serving's source, and what it has not."""

from pathlib import Path
from typing import Any

import pytest

from gemma_server.serving.model_spec import ModelsFile, ModelSpec
from gemma_server.serving.source import ConfiguredModels, ReadModelsFile, SourceFailed, WantedModel


def publish(base: Path, name: str, content: str = "weights") -> Path:
    (base / name).mkdir(parents=True)
    (base / name / "weights").write_text(content)
    return base / name


def source_of(base: Path, **fields: Any) -> ConfiguredModels:
    spec = ModelSpec(base_path=base, **fields)
    return ConfiguredModels(lambda: ModelsFile(models={"m": spec}))


def poll(source: ConfiguredModels) -> WantedModel:
    return source.poll().models["m"]


def polled(source: ConfiguredModels) -> list[int]:
    """The versions wanted once the files have been seen twice."""
    source.poll()
    return [*poll(source).versions]


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        (1, [7]),
        (2, [3, 7]),
        (9, [1, 3, 7]),
        ("all", [1, 3, 7]),
        ([1, 3, 5], [1, 3]),
        ([], []),
    ],
)
def test_the_versions_that_are_wanted(tmp_path: Path, versions: Any, wanted: list[int]) -> None:
    for name in ("1", "0003", "7", "8.denied", "tmp", ".9", "10.tmp", "-4", "x2"):
        publish(tmp_path, name)
    assert polled(source_of(tmp_path, versions=versions)) == wanted


def test_a_version_that_is_being_copied_does_not_count(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    publish(tmp_path, "1")
    assert polled(source) == [1]
    copied = publish(tmp_path, "2", "half")
    for size in range(3):
        assert [*poll(source).versions] == [1]
        (copied / "weights").write_text("half and more" + "." * size)
    assert polled(source) == [2]


def test_a_version_counts_on_while_its_files_change(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    version = publish(tmp_path, "1")
    before = (poll(source), poll(source))[1].versions[1]
    (version / "weights").write_text("others")
    assert poll(source).versions[1] == before
    after = poll(source).versions[1]
    assert after.path == before.path
    assert after.signature != before.signature


def test_a_directory_that_is_gone_is_no_empty_one(tmp_path: Path) -> None:
    base = tmp_path / "base"
    source = source_of(base)
    assert poll(source) == WantedModel({}, error=f"{base}: No such file or directory")
    publish(base, "1")
    assert polled(source) == [1]
    base.rename(tmp_path / "elsewhere")
    gone = poll(source)
    assert ([*gone.versions], gone.error[-25:]) == ([1], "No such file or directory")
    (tmp_path / "elsewhere").rename(base)
    assert [*poll(source).versions] == [1]


def test_the_last_version_is_not_removed(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    for name in ("1", "2"):
        publish(tmp_path, name)
    assert polled(source) == [2]
    (tmp_path / "2").rename(tmp_path / "2.denied")
    assert [*poll(source).versions] == [1]
    (tmp_path / "1").rename(tmp_path / "1.denied")
    assert [*poll(source).versions] == [1]


def test_a_version_s_only_gguf_file_is_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.gguf").write_text("GGUF")
    source = source_of(tmp_path)
    source.poll()
    assert poll(source).versions[1].path == tmp_path / "1" / "model.gguf"


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_a_file_of_models_is_read_again_when_it_changes(tmp_path: Path) -> None:
    for base in ("a", "b"):
        publish(tmp_path / base, "1")
        publish(tmp_path / base, "2")
    file = write(tmp_path / "models.toml", '[models.x]\nbase_path = "a"\nslots = 3')
    source = ConfiguredModels(ReadModelsFile(file))
    source.poll()
    [(name, model)] = source.poll().models.items()
    assert (name, [*model.versions], model.options) == ("x", [2], {"slots": 3})
    more = '\n[models.y]\nbase_path = "b"\nversions = "all"\nlabels = {stable = 1}'
    write(file, file.read_text() + more)
    source.poll()
    found, first = source.poll()
    assert {name: [*model.versions] for name, model in found.items()} == {"x": [2], "y": [1, 2]}
    assert (found["y"].labels, first) == ({"stable": 1}, "x")
    write(file, f'default = "y"\n{file.read_text()}')
    assert source.poll().first == "y"
    write(file, "[models.y")
    with pytest.raises(SourceFailed, match=r"models.toml: not TOML: Expected"):
        source.poll()
    file.unlink()
    with pytest.raises(SourceFailed, match="No such file"):
        source.poll()


def test_a_directory_that_is_gone_holds_up_no_other_model(tmp_path: Path) -> None:
    publish(tmp_path / "a", "1")
    specs = {name: ModelSpec(base_path=tmp_path / name) for name in ("a", "gone")}
    source = ConfiguredModels(lambda: ModelsFile(models=specs))
    source.poll()
    found = source.poll().models
    assert [*found["a"].versions] == [1]
    assert (found["a"].error, [*found["gone"].versions]) == ("", [])
    assert "No such file" in found["gone"].error


def test_a_checkpoint_is_version_1(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "model.gguf", "GGUF")
    said = ModelsFile(models={"m": ModelSpec(checkpoint=checkpoint)})
    source = ConfiguredModels(lambda: said)
    [(number, wanted)] = poll(source).versions.items()
    assert (number, wanted.path) == (1, checkpoint)
    write(checkpoint, "another one")
    assert poll(source).versions[1].signature != wanted.signature
