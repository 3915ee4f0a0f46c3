"""Building the kernels: what happens without a compiler, and that a library is whole or absent."""

import logging
from pathlib import Path

import pytest

from gemma_server.native import library
from gemma_server.native.library import BuildError, build, load, register


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if installing had built nothing: other flags make it another library, and a slower one
    that is built in less time."""
    monkeypatch.setenv("CXXFLAGS", "-DNOT_BUILT_YET -O0")


def test_without_a_compiler_the_log_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        assert not register(tmp_path / "cache")
    assert "no C++ compiler" in caplog.text
    assert "apt-get install g++" in caplog.text


def test_a_failing_compiler_is_named_with_its_first_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho first words >&2; echo more >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildError, match="broken-c\\+\\+ failed: first words"):
        build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not register(tmp_path / "file" / "cache")


@pytest.mark.slow
def test_a_library_is_built_once_and_damaged_ones_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load(tmp_path / "good", "built_once_")
    [made] = (tmp_path / "good").iterdir()
    monkeypatch.setattr(library, "build", lambda directory: pytest.fail("built again"))
    load(tmp_path / "good", "built_twice_")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / made.name).write_bytes(b"not a library")
    assert not register(tmp_path / "bad")
    assert "cannot be used" in caplog.text
