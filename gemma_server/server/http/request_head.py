"""Parses request heads of the usual form at once.

gunicorn's general parser works line by line, which takes a sixth of a short request's time.
"""

import re
from typing import Any

from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

# A path and values in plain ASCII; names without an underscore, which may stand for a dash.
_PLAIN = re.compile(
    rb"(GET|POST) ((/[A-Za-z0-9/._~-]*)(?:\?([A-Za-z0-9/._~=&%+-]*))?) HTTP/1\.1"
    rb"((?:\r\n[A-Za-z0-9-]+: ?(?:[!-~]+(?: +[!-~]+)*)?)*)\r\n\r\n"
)
_MAX_PLAIN_BYTES = 4000  # so no line exceeds gunicorn's default limits
_POLICIES = frozenset({"EXPECT", "TRANSFER-ENCODING"})  # headers that gunicorn handles


class PlainRequest(Request):  # type: ignore[misc]  # gunicorn is untyped
    """A request whose head is parsed at once if it is plain, and by gunicorn otherwise.

    gunicorn still interprets the headers: the body's length, and whether the connection stays.
    """

    def parse(self, unreader: Any) -> bytes:
        """Read the head; return the bytes that came after it."""
        data: bytes = unreader.read()
        plain = _PLAIN.match(data, 0, _MAX_PLAIN_BYTES)
        if plain is not None and self._accepts(headers := _headers(plain[5])):
            self.method, self.uri, self.path, self.query = (
                (part or b"").decode() for part in plain.group(1, 2, 3, 4)
            )
            self.fragment, self.version, self.headers = "", (1, 1), headers
            return data[plain.end() :]
        unreader.unread(data)
        rest: bytes = super().parse(unreader)
        return rest

    def _accepts(self, headers: list[tuple[str, str]]) -> bool:
        """Whether gunicorn would take these headers as they are."""
        names = {name for name, _ in headers}
        special = names & _POLICIES or names & self.cfg.secure_scheme_headers.keys()
        several = len(names) < len(headers) or len(names) > self.limit_request_fields
        lengths = (self.limit_request_line, self.limit_request_field_size)
        strict = any(0 < limit < _MAX_PLAIN_BYTES for limit in lengths)
        return not (special or several or strict) and self.cfg.proxy_protocol == "off"


class PlainParser(RequestParser):  # type: ignore[misc]  # gunicorn is untyped
    """The requests of one connection."""

    mesg_class = PlainRequest


def _headers(lines: bytes) -> list[tuple[str, str]]:
    """The headers in gunicorn's form: names in capitals, values stripped."""
    found = []
    for line in lines.decode().split("\r\n")[1:]:
        name, _, value = line.partition(":")
        found.append((name.upper(), value.strip(" ")))
    return found
