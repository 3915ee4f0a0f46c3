"""A running server, for commands that ask something of it."""

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from gemma_server.cli import exits
from gemma_server.errors import UsageError

_TIMEOUT_S = 600.0  # a model may have to be loaded first


class Remote:
    """A server at `http://HOST:PORT`, `https://...` or `unix:PATH`, with one of its keys if it
    wants one."""

    def __init__(self, address: str, api_key: str | None = None) -> None:
        self._address, self._key = address, api_key

    def ask(self, method: str, path: str) -> Any:
        """The JSON that it answers with; None if that is nothing.

        Raises:
            UsageError: it cannot be reached, or refuses.
        """
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        connection = self._connection()
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UsageError(f"no server answers at {self._address}: {error}") from None
        finally:
            connection.close()
        try:
            document = json.loads(text) if text else None
        except ValueError:
            raise UsageError(f"{self._address} is no gemma-server: {text[:60]!r}") from None
        if answer.status != http.client.OK:
            raise UsageError(_message(document, answer.status))
        return document

    def _connection(self) -> http.client.HTTPConnection:
        if self._address.startswith("unix:"):
            return _OverUnixSocket(self._address.removeprefix("unix:"))
        url = urlsplit(self._address)
        kinds: dict[str, type[http.client.HTTPConnection]] = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        if url.scheme not in kinds or url.hostname is None:
            raise UsageError(f"--server {self._address}: not http://HOST:PORT or unix:PATH")
        return kinds[url.scheme](url.hostname, url.port, timeout=_TIMEOUT_S)


class _OverUnixSocket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _message(document: Any, status: int) -> str:
    """What an error says, in any of the forms that errors have."""
    error = document.get("error") if isinstance(document, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or f"the server answers with status {status}")


def with_server(command: Callable[..., None]) -> Callable[..., None]:
    """The options `--server` and `--api-key-file`; the command gets a `Remote` as `server`."""

    @click.option(
        "--server",
        "address",
        default="http://127.0.0.1:20200",
        show_default=True,
        help="where it is: http://HOST:PORT or unix:PATH",
    )
    @click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        envvar="GEMMA_API_KEY_FILE",
        help="file whose first line is an API key, if it wants one [env GEMMA_API_KEY_FILE]",
    )
    def wrapped(address: str, api_key_file: Path | None, **options: Any) -> None:
        try:
            key = None if api_key_file is None else _first_line(api_key_file)
            command(server=Remote(address, key), **options)
        except UsageError as error:
            exits.fail(str(error), exits.FAILED)

    wrapped.__doc__ = command.__doc__
    return wrapped


def _first_line(file: Path) -> str:
    try:
        return file.read_text().split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file}: {error}") from None
