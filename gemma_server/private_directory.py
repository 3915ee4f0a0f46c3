"""Directories whose files are run as code: only their owner can write there, and damage is seen."""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from gemma_server.errors import ModelLoadError

_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedError(Exception):
    """A file is not what was written."""


def seal(data: bytes) -> bytes:
    """The data with its digest behind it."""
    return data + hashlib.sha256(data).digest()


def unseal(sealed: bytes) -> bytes:
    """The data, if it is what was sealed.

    Raises:
        DamagedError: it is not.
    """
    data = sealed[:-_DIGEST_BYTES]
    if hashlib.sha256(data).digest() != sealed[-_DIGEST_BYTES:]:
        raise DamagedError("its digest is another's")
    return data


class PrivateDirectory:
    """A directory of the user's own that nobody else can write to, held open from the look to the
    last use.

    Who can write above it could put another in its place, before or after: but no directory that
    this user owns and others cannot write to, and what is open stays.

    Raises:
        ModelLoadError: it cannot be made, is a link, or is open to others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ModelLoadError(f"--cache-dir: {error}") from None
        if _is_open(os.fstat(self._fd)):
            raise ModelLoadError(
                f"{path}: others may write there, and could so run code here; "
                "make it yours alone (chmod 700) or set --cache-dir"
            )

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)

    def read(self, name: str) -> bytes:
        """The data that was written under this name.

        Raises:
            FileNotFoundError: there is none.
            DamagedError: the file is not what was written, or not the owner's own.
        """
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or _is_open(found):
                raise DamagedError("others could have written it")
            return unseal(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Keep the data under this name, atomically. Raises OSError, if the disk is full too."""
        scratch = f"scratch{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with open(os.open(scratch, flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.write(seal(data))
            os.replace(scratch, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        finally:
            self.remove(scratch)

    def touch(self, name: str) -> None:
        """Note that the file was used now."""
        os.utime(name, dir_fd=self._fd)

    def used(self) -> dict[str, float]:
        """When each file was used last, in seconds since 1970."""
        with os.scandir(self._fd) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_mtime for entry in entries}

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


def _is_open(found: os.stat_result) -> bool:
    """Whether others could have written it."""
    return found.st_uid != os.getuid() or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
