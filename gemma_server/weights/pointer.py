"""Git LFS pointers: what a clone without `git lfs` holds in place of large files."""

from pathlib import Path

from gemma_server.errors import ModelLoadError

_OPENING = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Say so if the file is a Git LFS pointer.

    Raises:
        ModelLoadError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(_OPENING)) == _OPENING:
            raise ModelLoadError(
                f"{path}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
            )
