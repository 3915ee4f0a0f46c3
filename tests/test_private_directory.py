"""Where code is kept: only its owner can write, nobody can exchange it, and damage is seen."""

import os
from pathlib import Path

import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.private_directory import DamagedError, PrivateDirectory, seal, unseal


def test_what_was_written_is_read(tmp_path: Path) -> None:
    directory = PrivateDirectory(tmp_path / "a" / "b")
    for data in (b"", b"one", b"another" * 1000):
        directory.write("name", data)
        assert PrivateDirectory(tmp_path / "a" / "b").read("name") == data
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["name"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b" / "name").stat().st_mode & 0o777 == 0o600
    directory.remove("name")
    directory.remove("name")
    with pytest.raises(FileNotFoundError):
        directory.read("name")


def test_every_wrong_bit_and_every_cut_is_seen() -> None:
    whole = seal(b"some machine code")
    assert unseal(whole) == b"some machine code"
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError):
            unseal(bytes(damaged))
    for length in range(len(whole)):
        with pytest.raises(DamagedError):
            unseal(whole[:length])


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o770, 0o1777])
def test_one_that_others_can_write_to_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs").chmod(mode)
    with pytest.raises(ModelLoadError) as refused:
        PrivateDirectory(tmp_path / "programs")
    assert str(refused.value).startswith(f"{tmp_path / 'programs'}: others may write there")
    assert "--cache-dir" in str(refused.value)


def test_one_of_another_user_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PrivateDirectory(tmp_path / "programs").write("name", b"data")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ModelLoadError, match="others may write there"):
        PrivateDirectory(tmp_path / "programs")


def test_what_is_above_it_may_be_open(tmp_path: Path) -> None:
    """As a volume is that a cluster mounts, or /tmp: nobody else could have made what is there."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(0o777)
    directory = PrivateDirectory(tmp_path / "volume" / "own")
    directory.write("name", b"data")
    assert directory.read("name") == b"data"


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """Who can write above it could lead the server to any other directory of the user's."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="--cache-dir"):
        PrivateDirectory(tmp_path / "link")


@pytest.mark.parametrize("kind", ["writable", "link", "directory"])
def test_a_file_that_others_could_have_made_is_not_read(tmp_path: Path, kind: str) -> None:
    directory = PrivateDirectory(tmp_path / "own")
    directory.write("good", b"data")
    path = tmp_path / "own" / "name"
    if kind == "writable":
        path.write_bytes(seal(b"data"))
        path.chmod(0o666)
    elif kind == "link":
        path.symlink_to(tmp_path / "own" / "good")
    else:
        path.mkdir()
    with pytest.raises((DamagedError, OSError)):
        directory.read("name")


def test_a_directory_that_is_exchanged_later_changes_nothing(tmp_path: Path) -> None:
    directory = PrivateDirectory(tmp_path / "own")
    directory.write("name", b"mine")
    (tmp_path / "own").rename(tmp_path / "moved")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "name").write_bytes(seal(b"theirs"))
    assert directory.read("name") == b"mine"


def test_a_place_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match=r"--cache-dir: .*Not a directory"):
        PrivateDirectory(tmp_path / "file" / "cache")
