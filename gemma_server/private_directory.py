"""Directories whose files are run as code: only their owner can write there, and damage is seen."""

import contextlib
import grp
import hashlib
import os
import pwd
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
    """A directory that is made for its owner alone, and held open.

    Every directory above it is looked at through the one before, so that nobody can exchange one
    between the look and the use.

    Raises:
        ModelLoadError: it cannot be made, or others could write to it or exchange it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = _open(path.resolve(strict=True))
        except OSError as error:
            raise ModelLoadError(f"--cache-dir: {error}") from None

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
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in _trusted() or _open_to(found):
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


def _open(path: Path) -> int:
    """Open an absolute path without links, directory by directory, and check each."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    fd, at = os.open(path.anchor, flags), Path(path.anchor)
    try:
        for part in path.parts[1:]:
            _refuse_if_others_write(at, fd)
            inner, at = os.open(part, flags, dir_fd=fd), at / part
            os.close(fd)
            fd = inner
        _refuse_if_others_write(at, fd, is_own=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_if_others_write(path: Path, fd: int, *, is_own: bool = False) -> None:
    """In a sticky directory, as /tmp, others can write but exchange nothing of ours."""
    found = os.fstat(fd)
    sticky = bool(found.st_mode & stat.S_ISVTX) and not is_own
    owners = {os.getuid()} if is_own else _trusted()
    if found.st_uid not in owners or (_open_to(found, is_own=is_own) and not sticky):
        raise ModelLoadError(
            f"{path}: others may write there, and could so run code here; "
            "make it yours alone (chmod 700) or set --cache-dir"
        )


def _trusted() -> set[int]:
    """The user, root, and whoever owns the root directory: in a user's namespace that is root."""
    return {os.getuid(), 0, os.stat("/").st_uid}


def _open_to(found: os.stat_result, *, is_own: bool = True) -> bool:
    """Whether others than the owner can write. A group of the user's own is nobody else's, as many
    systems have it for every user's files."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and (is_own or not _is_own_group(found.st_gid))


def _is_own_group(gid: int) -> bool:
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    named = group.gr_name == user.pw_name  # else it may be the first group of others, too
    return named and gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}
