"""A directory of versions: the cases of TensorFlow Serving's source, and what it has not."""

from pathlib import Path

import pytest

from gemma_server.serving.source import SourceFailed, VersionDirectory, VersionPolicy


def publish(base: Path, name: str, content: str = "weights") -> Path:
    (base / name).mkdir(parents=True)
    (base / name / "weights").write_text(content)
    return base / name


def polled(source: VersionDirectory) -> list[int]:
    """The versions wanted once the files have been seen twice."""
    source.poll()
    return [*source.poll()["m"]]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (VersionPolicy(), [7]),
        (VersionPolicy(latest=2), [3, 7]),
        (VersionPolicy(latest=9), [1, 3, 7]),
        (VersionPolicy(latest=None), [1, 3, 7]),
        (VersionPolicy(specific=frozenset({1, 3, 5})), [1, 3]),
        (VersionPolicy(specific=frozenset()), []),
    ],
)
def test_the_policy_chooses(tmp_path: Path, policy: VersionPolicy, wanted: list[int]) -> None:
    for name in ("1", "0003", "7", "8.denied", "tmp", ".9", "10.tmp", "-4", "x2"):
        publish(tmp_path, name)
    assert polled(VersionDirectory("m", tmp_path, policy)) == wanted


def test_a_version_that_is_being_copied_does_not_count(tmp_path: Path) -> None:
    source = VersionDirectory("m", tmp_path)
    publish(tmp_path, "1")
    assert polled(source) == [1]
    copied = publish(tmp_path, "2", "half")
    for size in range(3):
        assert [*source.poll()["m"]] == [1]
        (copied / "weights").write_text("half and more" + "." * size)
    assert polled(source) == [2]


def test_a_version_counts_on_while_its_files_change(tmp_path: Path) -> None:
    source = VersionDirectory("m", tmp_path)
    version = publish(tmp_path, "1")
    before = (source.poll(), source.poll())[1]["m"][1]
    (version / "weights").write_text("others")
    assert source.poll()["m"][1] == before
    after = source.poll()["m"][1]
    assert after.path == before.path
    assert after.signature != before.signature


def test_a_directory_that_is_gone_is_no_empty_one(tmp_path: Path) -> None:
    base = tmp_path / "base"
    source = VersionDirectory("m", base)
    with pytest.raises(SourceFailed, match="base: No such file"):
        source.poll()
    publish(base, "1")
    assert polled(source) == [1]
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceFailed):
        source.poll()
    (tmp_path / "elsewhere").rename(base)
    assert [*source.poll()["m"]] == [1]


def test_the_last_version_is_not_removed(tmp_path: Path) -> None:
    source = VersionDirectory("m", tmp_path)
    for name in ("1", "2"):
        publish(tmp_path, name)
    assert polled(source) == [2]
    (tmp_path / "2").rename(tmp_path / "2.denied")
    assert [*source.poll()["m"]] == [1]
    (tmp_path / "1").rename(tmp_path / "1.denied")
    assert [*source.poll()["m"]] == [1]


def test_a_version_s_only_gguf_file_is_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.gguf").write_text("GGUF")
    source = VersionDirectory("m", tmp_path)
    source.poll()
    assert source.poll()["m"][1].path == tmp_path / "1" / "model.gguf"
