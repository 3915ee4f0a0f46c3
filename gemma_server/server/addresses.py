"""Checks the addresses that the server listens on; an error is one line."""

import errno
import os
import socket
import sys
from pathlib import Path

from gemma_server.errors import UsageError
from gemma_server.settings import Settings

_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes, by the system's sockaddr_un


def check_address(settings: Settings) -> None:
    """Check that the server can listen on its addresses.

    Raises:
        UsageError: another server is there, or the address cannot be used.
    """
    if settings.serves_tcp:
        _check_port(settings.host, settings.port)
    if settings.uds is not None:
        check_socket("--uds", settings.uds)
    if settings.frames is not None:
        if settings.uds is not None and settings.frames.absolute() == settings.uds.absolute():
            raise UsageError(f"--frames {settings.frames}: that is --uds as well")
        check_socket("--frames", settings.frames)


def check_socket(flag: str, path: Path) -> None:
    """Check that a Unix socket can be made at `path`.

    Raises:
        UsageError: another server or a file is there, or the directory is missing.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no such directory")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise UsageError(f"{flag} {path}: longer than {_MAX_SOCKET_PATH} bytes")
    if not path.exists():
        return
    if not path.is_socket():
        raise UsageError(f"{flag} {path}: a file is in its place; remove it first")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # stale: it will be replaced
        except OSError as error:  # a server may be there, busy or another user's
            raise UsageError(f"{flag} {path}: cannot tell whose it is: {error.strerror}") from None
    raise UsageError(f"{flag} {path}: another server listens there")


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            hint = "; is gemma-server already running?" if error.errno == errno.EADDRINUSE else ""
            raise UsageError(
                f"cannot listen on --host {host} --port {port}: {error.strerror}{hint}"
            ) from None
