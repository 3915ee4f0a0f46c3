"""Building the kernels: what happens without a compiler, and that a library is whole or absent."""

import logging
from pathlib import Path

import pytest

from gemma_server.native import library
from gemma_server.native.library import BuildError, build, load, register
from gemma_server.private_directory import PrivateDirectory, unseal


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
        assert not register(PrivateDirectory(tmp_path / "cache"))
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
        build()


def test_a_library_that_cannot_be_installed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "HERE", tmp_path / "nowhere")
    monkeypatch.setattr(library, "build", lambda: b"a library")
    with pytest.raises(BuildError, match="No such file or directory"):
        library.install()


@pytest.mark.slow
def test_a_library_is_built_once_and_damaged_ones_are_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = PrivateDirectory(tmp_path / "cache")
    load(directory, "built_once_")
    [made] = (tmp_path / "cache").iterdir()
    whole = made.read_bytes()
    built: list[bytes] = []

    def build_again() -> bytes:
        built.append(unseal(whole))
        return built[-1]

    monkeypatch.setattr(library, "build", build_again)
    load(directory, "built_twice_")
    assert not built
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    made.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        load(directory, "built_anew_")
    assert "cannot be used: its digest is another's" in caplog.text
    assert len(built) == 1
    assert made.read_bytes() == whole


@pytest.mark.slow
def test_what_was_installed_is_used_where_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package's own directory may be shared; its library has a digest all the same."""
    sources = [tmp_path / path.name for path in library.HERE.glob("*.*[ch]")]
    for path in sources:
        path.write_bytes((library.HERE / path.name).read_bytes())
    monkeypatch.setattr(library, "HERE", tmp_path)
    made = library.install()
    assert made.parent == tmp_path
    monkeypatch.setattr(library, "build", lambda: pytest.fail("built again"))
    load(PrivateDirectory(tmp_path / "cache"), "installed_")
    assert list((tmp_path / "cache").iterdir()) == []
