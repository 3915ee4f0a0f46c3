"""Which web pages may send requests: a browser says where a page comes from.

Sources: the Fetch standard (CORS, preflights) and the W3C's Fetch Metadata (`Sec-Fetch-Site`).
"""

import re

from flask import Response, request
from werkzeug.exceptions import Forbidden

_SAFE = ("GET", "HEAD")  # they cost nothing, and without CORS headers no page reads the answer
_OWN = ("none", "same-origin")  # typed by the user, or sent by a page of this server
_TOLD = "X-Request-Id, X-Model-Version, X-Degraded, Server-Timing, Retry-After, X-Should-Retry"
_REMEMBERED_S = 600


class Origins:
    """Lets through what no browser sends, this server's own pages, and `allowed` origins: patterns
    such as `https://app.example`, `http://localhost:*` or `*`."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = [re.compile(re.escape(each).replace(r"\*", ".*")) for each in allowed]

    def check(self) -> None:
        """Raise `Forbidden` for a request that a page from elsewhere may not send."""
        environ = request.environ
        if environ["REQUEST_METHOD"] in _SAFE:
            return
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            foreign = environ.get("HTTP_SEC_FETCH_SITE", "none") not in _OWN
        else:
            foreign = not (self._is_own(origin) or self._is_allowed(origin))
        if foreign:
            shown = "another site" if origin is None else repr(origin[:100])
            raise Forbidden(
                f"a page from {shown} may not use this server; start it with --allowed-origins"
            )

    def preflight(self) -> Response | None:
        """The answer to what a browser asks before it lets an allowed page send a request."""
        environ = request.environ
        if environ["REQUEST_METHOD"] != "OPTIONS" or "HTTP_ORIGIN" not in environ:
            return None
        if not self._is_allowed(environ["HTTP_ORIGIN"]):
            return None
        answer = Response(status=204)
        answer.headers["Access-Control-Allow-Methods"] = "GET, POST"
        asked = request.headers.get("Access-Control-Request-Headers")
        if asked is not None:
            answer.headers["Access-Control-Allow-Headers"] = asked
        if "Access-Control-Request-Private-Network" in request.headers:
            answer.headers["Access-Control-Allow-Private-Network"] = "true"
        answer.headers["Access-Control-Max-Age"] = str(_REMEMBERED_S)
        return answer

    def tell(self, answer: Response) -> None:
        """Let an allowed page read the answer."""
        if not self._allowed:
            return
        answer.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is not None and self._is_allowed(origin):
            answer.headers["Access-Control-Allow-Origin"] = origin
            answer.headers["Access-Control-Expose-Headers"] = _TOLD

    def _is_allowed(self, origin: str) -> bool:
        return any(pattern.fullmatch(origin) for pattern in self._allowed)

    def _is_own(self, origin: str) -> bool:
        """By host and port: behind a proxy the scheme may be another."""
        _, _, host = origin.partition("://")
        return host == request.headers.get("Host")
