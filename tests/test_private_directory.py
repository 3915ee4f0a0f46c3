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


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o770])
@pytest.mark.parametrize("which", [".", "programs"])
def test_a_path_that_others_could_change_is_refused_with_what_to_do(
    tmp_path: Path, mode: int, which: str
) -> None:
    (tmp_path / "programs").mkdir()
    wrong = tmp_path / which
    wrong.chmod(mode)
    if which == "." and mode == 0o770 and os.stat(wrong).st_gid == os.getgid():
        pytest.skip("a group of the user's own, as on many systems")
    try:
        with pytest.raises(ModelLoadError) as refused:
            PrivateDirectory(tmp_path / "programs")
    finally:
        wrong.chmod(0o700)
    assert str(refused.value).startswith(f"{wrong}: others may write there")
    assert "--cache-dir" in str(refused.value)


def test_others_may_write_beside_it_where_they_cannot_exchange_it(tmp_path: Path) -> None:
    """As in /tmp, whose sticky bit keeps them from it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    PrivateDirectory(tmp_path / "shared" / "own").write("name", b"data")


def test_a_link_leads_to_the_place_that_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "own").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "own")
    with pytest.raises(ModelLoadError, match="open: others may write"):
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
