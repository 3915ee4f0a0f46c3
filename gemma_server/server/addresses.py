"""Checks the addresses that the server listens on; an error is one line."""

import errno
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_server.errors import UsageError
from gemma_server.settings import is_loopback

_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes, by the system's sockaddr_un


# As gunicorn parses them: host and port, a Unix socket's path, or the number of an open socket.
Address = tuple[str, int] | str | int


def check_addresses(frames: Path | None, addresses: Iterable[Address]) -> None:
    """Check that the server can listen on gunicorn's addresses and on the frames' socket.

    Raises:
        UsageError: another server is there, or the address cannot be used.
    """
    for address in addresses:
        match address:
            case (host, port):
                _check_port(host, port)
            case str() as path:
                if frames is not None and frames.absolute() == Path(path).absolute():
                    raise UsageError(f"--frames {frames}: that is --uds as well")
                check_socket("--uds", Path(path))
    if frames is not None:
        check_socket("--frames", frames)


def are_inherited() -> bool:
    """Whether systemd has opened the sockets, which gunicorn then takes instead of its addresses
    (sd_listen_fds(3))."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and "LISTEN_FDS" in os.environ


def variables_of(bound: Iterable[tuple[Any, ...] | str | bytes]) -> dict[str, str]:
    """The variables of the settings that say what these sockets' names say. Of several hosts, one
    that other machines can reach."""
    variables: dict[str, str] = {}
    for name in bound:
        if isinstance(name, tuple):
            host, port = name[:2]
            if "GEMMA_HOST" not in variables or not is_loopback(host):
                variables |= {"GEMMA_HOST": host, "GEMMA_PORT": str(port)}
        else:
            variables["GEMMA_UDS"] = os.fsdecode(name).replace("\0", "@")  # an abstract name
    return variables


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
