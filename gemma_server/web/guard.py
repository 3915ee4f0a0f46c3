"""Who may send requests: checks the Host that a request names, and its API key."""

import hashlib
import hmac
import re
import socket
from collections.abc import Mapping
from functools import lru_cache

from flask import g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, Forbidden, Unauthorized

from gemma_server.serving.rate_limit import RateLimit
from gemma_server.settings import is_loopback

_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # without its port
PUBLIC_PATHS = ("/healthz", "/readyz", "/health", "/v2/health/live", "/v2/health/ready")


class Guard:
    """Checks every request before its route runs. Of an API key it knows how much it may use.

    On a loopback address only loopback names are accepted as Host: a web page that rebinds its
    own name to 127.0.0.1 still sends its own name.
    """

    def __init__(self, *, api_keys: Mapping[str, RateLimit], local_only: bool) -> None:
        self._keys = {key.encode(): limit for key, limit in api_keys.items()}
        self._local_only = local_only

    def check(self) -> None:
        """Raise `BadRequest`, `Forbidden` or `Unauthorized` for a request that may not pass."""
        host = _named_host()
        if self._local_only and not _is_this_machine(host) and not came_by_unix_socket():
            raise Forbidden(
                f"Host {host[:100]!r} is not this machine; "
                "use localhost or 127.0.0.1, or serve on another --host"
            )
        if self._keys and request.path not in PUBLIC_PATHS and not self._key_is_known():
            raise Unauthorized(
                "an API key is needed: Authorization: Bearer KEY",
                www_authenticate=WWWAuthenticate("bearer"),
            )

    def _key_is_known(self) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = key.strip().encode("latin-1", errors="replace")  # the bytes that were sent
        # All keys are compared, each in constant time: the answer's delay tells nothing.
        known = [key for key in self._keys if hmac.compare_digest(given, key)]
        if scheme.lower() != "bearer" or not known:
            return False
        g.api_key, g.rate_limit = hashlib.sha256(given).hexdigest(), self._keys[known[0]]
        return True


def _named_host() -> str:
    """The host that the request is for: a target in absolute form counts, not the header beside it
    (RFC 9112, section 3.2.2)."""
    environ = request.environ
    target: str = environ.get("RAW_URI", "/")
    if target[:1] != "/" and target.lower().startswith(("http://", "https://")):
        return target.partition("://")[2].partition("/")[0]
    if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
        raise BadRequest("an HTTP/1.1 request needs a Host header")
    return environ.get("HTTP_HOST") or request.host


def came_by_unix_socket() -> bool:
    """No web page can use a Unix socket; under a test client there is no socket at all."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    return connection is not None and connection.family == socket.AF_UNIX


@lru_cache(maxsize=256)
def _is_this_machine(host: str) -> bool:
    """Whether `[::1]:20200` or `localhost:20200` can only be reached from here."""
    parts = _HOST.fullmatch(host)
    return parts is not None and is_loopback(parts[1])
