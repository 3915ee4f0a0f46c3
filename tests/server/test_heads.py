"""Heads that are read at once mean what gunicorn's own reading of them means."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemma_server.server.http.request_head import PlainParser
from testing.counts import cases

PEER = ("127.0.0.1", 5)
FROM_GO = (
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:20200\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Content-Length: 2\r\nAuthorization: Bearer a-key\r\nContent-Type: application/json\r\n"
    b"Accept-Encoding: gzip\r\n\r\n{}"
)
FROM_CURL = b"GET /readyz?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"

_NAMES = (
    "Host,Content-Length,Transfer-Encoding,Expect,Connection,Content-Type,X-Forwarded-Proto,Host ,"
    "X-FORWARDED-SSL,Upgrade,SCRIPT_NAME,X_Y,accept,Cookie,a,Ünï,x:y,,two words"
)
_VALUES = (
    "localhost,2,02,+2,-1,chunked,gzip,identity,100-continue,close,keep-alive,https,on,h2c,*/*,a:b,"
    ", ,a b, 2,2 ,\t2,é,\x00,\x7f,a\rb,a\nb,1; 2"
)
LINES = [
    f"{method} {target} {version}"
    for method in ("GET", "POST", "get", "PUT", "CONNECT", "OPTIONS", "G")
    for target in (
        "/echo",
        "/",
        "//a/b",
        "/a?b=c&d",
        "/a?",
        "*",
        "a:1",
        "http://h/x",
        "/é",
        "/a#b",
        "",
    )
    for version in ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ")
]
plain = st.builds(
    lambda name, value: f"{name}: {value}\r\n",
    st.sampled_from(
        ("Host", "Content-Length", "accept", "Expect", "X-Forwarded-Proto", "Connection")
    ),
    st.sampled_from(("localhost", "2", "2", "a b", "", "100-continue", "https", "close")),
)
odd = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    st.sampled_from(_NAMES.split(",")),
    st.sampled_from((": ", ":", " : ", ":  ", ":\t", "")),
    st.sampled_from(_VALUES.split(",")),
    st.sampled_from(("\r\n", "\r\n", "\r\n", "\n", "\r\n ", " \r\n")),
)
requests = st.builds(
    lambda line, fields, body: (line + "\r\n" + "".join(fields) + "\r\n" + body).encode("latin-1"),
    st.sampled_from(LINES) | st.just("POST /echo HTTP/1.1"),
    st.lists(plain, max_size=4) | st.lists(plain | odd, max_size=5),
    st.sampled_from(("", "{}", "2\r\n{}\r\n0\r\n\r\n")),
)


@settings(max_examples=cases(100, 500), deadline=None)
@given(
    st.lists(requests | st.sampled_from((FROM_GO, FROM_CURL)), min_size=1, max_size=3), st.data()
)
@example([FROM_GO, FROM_CURL, FROM_GO], None)
def test_both_readings_agree(sent: list[bytes], data: Any) -> None:
    """Whatever is sent, in whatever pieces, and behind one another on one connection."""
    whole = b"".join(sent)
    cuts = data.draw(st.sets(st.integers(0, len(whole)), max_size=3)) if data else set()
    borders = [0, *sorted(cuts), len(whole)]
    blocks = [whole[a:b] for a, b in pairwise(borders) if a < b]
    assert told(PlainParser, blocks) == told(RequestParser, blocks)


@pytest.mark.parametrize("fields", [100, 101, 700])
@pytest.mark.parametrize("length", [1, 3980, 9000])
def test_limits_are_the_same(fields: int, length: int) -> None:
    """More headers, or longer ones, than gunicorn takes are no plain head's privilege."""
    for line in (b"GET /a?" + b"b" * length, b"GET /"):
        lines = [b"x%d: %s\r\n" % (at, b"v" * (length if at == 7 else 1)) for at in range(fields)]
        blocks = [line + b" HTTP/1.1\r\n" + b"".join(lines) + b"\r\n"]
        assert told(PlainParser, blocks) == told(RequestParser, blocks)


@pytest.mark.parametrize("limit", ["limit_request_line", "limit_request_field_size"])
def test_smaller_limits_hold(limit: str) -> None:
    """An operator's own."""
    blocks = [b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: " + b"b" * 200 + b"\r\n\r\n"]
    own = Config()
    own.set(limit, 100)
    both = [told(parser, blocks, own) for parser in (PlainParser, RequestParser)]
    assert both[0] == both[1]
    assert len(both[0][0]) == 2  # an error


@pytest.mark.parametrize("head", [FROM_GO, FROM_CURL], ids=["go", "curl"])
def test_ordinary_clients_are_read_at_once(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all this would be for nothing."""
    monkeypatch.setattr(Request, "parse", None)
    assert next(PlainParser(Config(), iter([head]), PEER)).headers


def told(
    parser: type[RequestParser], blocks: list[bytes], config: Config | None = None
) -> list[Any]:
    """All that is known of each request on a connection, and how it ended."""
    found: list[Any] = []
    try:
        for request in parser(config or Config(), iter(blocks), PEER):
            found.append(list(facts(request)))
            found[-1].append(request.body.read())
    except (ParseException, OSError) as error:  # the latter: it ended in the middle
        found.append((type(error), str(error)))
    return found


def facts(request: Any) -> Iterator[Any]:
    yield from (request.method, request.uri, request.path, request.query, request.fragment)
    yield from (request.version, request.headers, request.scheme, request.should_close())
    yield from (request._expected_100_continue, type(request.body.reader))
