"""Files of a checkpoint: only regular files of a sensible size are accepted."""

import json
import stat
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError

INCOMPLETE = "is the download complete?"  # the likeliest reason for a damaged file
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PICKLED_WEIGHTS = "pickled weights are never read: convert them to safetensors first"
CHAT_TEMPLATE = "chat_template.jinja"
_POINTER = b"version https://git-lfs.github.com/spec/"


def require_file(path: Path, most_bytes: int | None = None) -> None:
    """Refuse a file that is a pipe, a device, too large, or a pointer.

    A clone without `git lfs` holds small pointers in place of large files.

    Raises:
        ModelLoadError: it is one of these.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelLoadError(f"{path}: not a regular file")
        if most_bytes is not None and found.st_size > most_bytes:
            raise ModelLoadError(f"{path}: has {found.st_size} bytes, more than {most_bytes}")
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from None
    if is_pointer:
        raise ModelLoadError(
            f"{path}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
        )


def read_file(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file of at most `most_bytes`.

    Raises:
        ModelLoadError: it cannot be read, or is refused.
    """
    require_file(path, most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(path: Path, most_bytes: int = 1 << 20) -> str:
    """The text of a file in UTF-8.

    Raises:
        ModelLoadError: it cannot be read, is too large, or is no UTF-8.
    """
    try:
        return read_file(path, most_bytes).decode()
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: not UTF-8: {error}") from None


def read_json(path: Path, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ModelLoadError: it cannot be read, is too large, or holds no JSON object.
    """
    try:
        found = json.loads(read_file(path, most_bytes))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not JSON: {str(error)[:200]}; {INCOMPLETE}") from None
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return found
