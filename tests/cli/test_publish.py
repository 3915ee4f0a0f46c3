"""`gemma-server publish`: a checkpoint as the next version, whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gemma_server.cli.main import main
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.serving.source import VersionDirectory
from testing.oracle.gemma import PRESETS
from testing.tiny import tiny_weights, write_gguf, write_orbax, write_tokenizer

NAME = "gemma2"


def _publish(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["publish", *map(str, arguments)])


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "some.gguf", NAME, tiny_weights(NAME))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"


def test_each_is_the_next_version_and_a_server_takes_it(gguf: Path, base: Path) -> None:
    for number in ("1", "2"):
        done = _publish(gguf, base)
        assert done.exit_code == 0, done.output
        assert f"published {base / number}" in done.output
        assert (base / number / "some.gguf").read_bytes() == gguf.read_bytes()
    assert _publish(gguf, base, "--number", "40").exit_code == 0
    assert sorted(path.name for path in base.iterdir()) == ["1", "2", "40"]
    directory = VersionDirectory(base)
    for _ in range(2):
        directory.look()
    assert directory.whole[40].path == base / "40" / "some.gguf"


def test_the_tokenizer_and_the_prompts_to_answer_go_with_it(tmp_path: Path, base: Path) -> None:
    checkpoint = write_orbax(tmp_path / "checkpoint", tiny_weights(NAME))
    tokenizer = write_tokenizer(tmp_path / "elsewhere.model", PRESETS[NAME].vocab)
    prompts = tmp_path / "prompts"
    prompts.write_text('{"prompt": "a"}\n')
    done = _publish(checkpoint, base, "--model-tokenizer", tokenizer, "--warmup", prompts)
    assert done.exit_code == 0, done.output
    assert (base / "1" / "warmup.jsonl").read_text() == prompts.read_text()
    tokenizer.unlink()
    assert open_checkpoint(base / "1").tokenizer.encode("a b")


def test_a_gguf_file_keeps_its_own_tokenizer(gguf: Path, tmp_path: Path, base: Path) -> None:
    other = write_tokenizer(tmp_path / "tokenizer.model", PRESETS[NAME].vocab)
    done = _publish(gguf, base, "--model-tokenizer", other)
    assert (done.exit_code, [*base.glob("*")]) == (2, [])
    assert "brings its own tokenizer" in done.output


def test_versions_are_not_written_over(gguf: Path, base: Path) -> None:
    (base / "3").mkdir(parents=True)
    done = _publish(gguf, base, "--number", "3")
    assert (done.exit_code, [*(base / "3").iterdir()]) == (2, [])
    assert "versions do not change" in done.output


@pytest.mark.parametrize("what", ["missing", "broken"])
def test_what_is_no_checkpoint_is_not_published(gguf: Path, base: Path, what: str) -> None:
    if what == "broken":
        gguf.write_bytes(gguf.read_bytes()[:-4000])
    else:
        gguf.unlink()
    assert _publish(gguf, base).exit_code == 3
    assert [*base.glob("*")] == []


def test_a_full_disk_leaves_nothing_behind(
    gguf: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = _publish(gguf, base)
    assert (done.exit_code, [*base.glob("*")]) == (2, [])
    assert "No space left on device" in done.output


def test_a_copy_that_differs_is_no_version(
    gguf: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(source: Path, target: Path) -> None:
        target.write_bytes(target.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr("shutil.copymode", damage)
    done = _publish(gguf, base)
    assert (done.exit_code, [*base.glob("*")]) == (3, [])
    assert "the copy differs" in done.output
