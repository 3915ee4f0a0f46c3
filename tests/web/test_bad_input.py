"""What clients get wrong: every mistake has its status, code and param, and the one form."""

import functools
import gzip
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testing.answers import assert_error, assert_error_form, parse_json, sse_events
from tests.web.conftest import App, Serve

MIB = 1 << 20
HUGE = "1" + "0" * 4000  # as long as json.loads takes


def _body(**fields: Any) -> bytes:
    return json.dumps({"prompt": "x", **fields}).encode()


def _raw(field: str, literal: str) -> bytes:
    """A body with a literal that `json.dumps` would not write."""
    return b'{"prompt": "x", "%s": %s}' % (field.encode(), literal.encode())


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b'{"prompt": "x"', id="cut off"),
        pytest.param(b'{"prompt": "x"} {}', id="two documents"),
        pytest.param(b"{'prompt': 'x'}", id="single quotes"),
        pytest.param(b'["x"]', id="array"),
        pytest.param(b'"x"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"prompt": NaN}', id="NaN"),
        pytest.param(b'{"prompt": -Infinity}', id="Infinity"),
        pytest.param(b'{"prompt": "a\0b"}', id="raw NUL in a string"),
        pytest.param(b'{"prompt": "x"}\0', id="raw NUL behind"),
        pytest.param(b'{"prompt": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"prompt": "\xed\xa0\x80"}', id="surrogate in UTF-8"),
        pytest.param('{"prompt": "x"}'.encode("utf-8-sig"), id="BOM"),
        pytest.param('{"prompt": "x"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"prompt": ' + b"[" * 900_000, id="nested without end"),
        pytest.param(b'{"prompt": ' + b"[" * 450_000 + b"]" * 450_000 + b"}", id="nested"),
        pytest.param(b'{"a":' * 180_000, id="nested objects"),
        pytest.param(_raw("seed", "9" * 5000), id="integer of 5000 digits"),
    ],
)
def test_a_body_that_is_no_json_object_is_invalid_json(app: App, path: str, body: bytes) -> None:
    error = assert_error(app.post(body, path), 400, "invalid_json")
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "prompt"),
        (b'{"sampling_steps": 5}', "prompt"),
        (_body(prompt=""), "prompt"),
        (_body(prompt=None), "prompt"),
        (_body(prompt=5), "prompt"),
        (_body(prompt=True), "prompt"),
        (_body(prompt={"text": "x"}), "prompt"),
        (_body(prompt=[]), "prompt"),
        (_body(prompt=["x"] * 65), "prompt"),
        (_body(prompt=["x", ""]), "prompt[1]"),
        (_body(prompt=["x", "y", "z", 5]), "prompt[3]"),
        (_body(prompt=[["x"]]), "prompt[0]"),
        (_body(prompt="\ud800"), "prompt"),
        (_body(prompt="a\udfff<end_of_turn>"), "prompt"),
        (_body(prompt=["x", "\ud800"]), "prompt[1]"),
        (_body(sampling_steps=0), "sampling_steps"),
        (_body(sampling_steps=-1), "sampling_steps"),
        (_raw("sampling_steps", "1e9"), "sampling_steps"),
        (_body(sampling_steps=1_000_000_000), "sampling_steps"),
        (_body(sampling_steps=257), "sampling_steps"),
        (_body(sampling_steps="ten"), "sampling_steps"),
        (_body(sampling_steps="10"), "sampling_steps"),
        (_body(sampling_steps=True), "sampling_steps"),
        (_body(sampling_steps=None), "sampling_steps"),
        (_body(sampling_steps=1.5), "sampling_steps"),
        (_body(sampling_steps=[1]), "sampling_steps"),
        (_raw("sampling_steps", HUGE), "sampling_steps"),
        (_body(temperature=-0.1), "temperature"),
        (_body(temperature=100.5), "temperature"),
        (_body(temperature="0"), "temperature"),
        (_body(temperature=True), "temperature"),
        (_raw("temperature", HUGE), "temperature"),
        (_body(top_k=-1), "top_k"),
        (_body(top_k=2**31), "top_k"),
        (_body(top_k=1.5), "top_k"),
        (_body(top_p=0), "top_p"),
        (_body(top_p=1.01), "top_p"),
        (_body(min_p=-0.01), "min_p"),
        (_body(min_p=1.01), "min_p"),
        (_body(seed=-1), "seed"),
        (_body(seed=2**64), "seed"),
        (_raw("seed", HUGE), "seed"),
        (_body(stop=""), "stop"),
        (_body(stop=5), "stop"),
        (_body(stop="x" * 257), "stop"),
        (_body(stop=["x"] * 65), "stop"),
        (_body(stop=["x", ""]), "stop[1]"),
        (_body(stop=["x", 5]), "stop[1]"),
        (_body(stop="\udc00"), "stop"),
        (_body(ignore_eos="yes"), "ignore_eos"),
        (_body(ignore_eos=1), "ignore_eos"),
        (_body(stream="true"), "stream"),
    ],
    ids=lambda value: value.decode()[:60] if isinstance(value, bytes) else value,
)
def test_a_value_that_cannot_be_names_its_field(app: App, body: bytes, param: str) -> None:
    error = assert_error(app.post(body), 400, "invalid_value", param)
    assert len(error["message"]) < 300


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
@pytest.mark.parametrize(
    "name", ["max_tokens", "Prompt", "", "prompt ", "ünï", "a\0b", "__class__"]
)
def test_an_unknown_field_is_refused_by_name(app: App, path: str, name: str) -> None:
    error = assert_error(app.post(_body(**{name: 1}), path), 400, "unknown_field", name)
    assert name in error["message"]


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
def test_a_field_name_with_a_lone_surrogate_is_a_client_error(app: App, path: str) -> None:
    response = app.post(b'{"prompt": "x", "\\ud800": 1}', path)
    assert response.status_code == 400
    assert_error_form(response)


def test_a_huge_field_name_makes_no_huge_answer(app: App) -> None:
    response = app.post(_body(**{"x" * 100_000: 1}))
    assert assert_error_form(response)["code"] == "unknown_field"
    assert len(response.data) < 1000


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "multipart/form-data", "application/xml", "json"],
)
def test_another_content_type_is_415(app: App, path: str, content_type: str | None) -> None:
    response = app.client.post(path, data=_body(), content_type=content_type)
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
@pytest.mark.parametrize("content_type", [None, "", "application/x-www-form-urlencoded"])
def test_a_body_is_json_if_its_sender_says_nothing_better_and_is_no_web_page(
    app: App, path: str, content_type: str | None
) -> None:
    """So `curl -d` works, and a form on somebody's page does not."""
    send = functools.partial(app.client.post, path, data=_body(), content_type=content_type)
    assert send().status_code == 200
    for header in ({"Origin": "http://evil.com"}, {"Sec-Fetch-Site": "cross-site"}):
        assert_error(send(headers=header), 403, "forbidden")


def test_a_charset_behind_the_content_type_is_welcome(app: App) -> None:
    content_type = "Application/JSON; charset=utf-8"
    response = app.client.post("/echo", data=_body(), content_type=content_type)
    assert response.json == {"echo_prompt": "x"}


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
def test_a_body_over_one_mebibyte_is_413(app: App, path: str) -> None:
    fits = _body(prompt="x" * (MIB - len(_body()) + 1))
    assert len(fits) == MIB
    assert app.post(fits, path).status_code == (200 if path == "/echo" else 400)
    response = app.post(fits + b" ", path)
    assert_error(response, 413, "request_entity_too_large")


@pytest.mark.parametrize("path", ["/prompt", "/echo"])
@pytest.mark.parametrize(
    "body", [b'{"prompt": "' + b"x" * MIB + b'"}', b"[" * 10_000_000], ids=["text", "nested"]
)
def test_a_chunked_body_over_one_mebibyte_is_413(app: App, path: str, body: bytes) -> None:
    response = app.client.post(
        path,
        input_stream=io.BytesIO(body),
        content_type="application/json",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert_error(response, 413, "request_entity_too_large")


def test_nesting_around_the_parsers_limit_is_echoed_or_refused(app: App) -> None:
    statuses = set()
    for depth in range(100, 1100, 4):
        document = b"[" * depth + b"]" * depth
        response = app.post(b'{"prompt": ' + document + b"}", "/echo")
        statuses.add(response.status_code)
        if response.status_code == 200:
            assert response.data.strip() == b'{"echo_prompt":' + document + b"}"
        else:
            assert_error(response, 400, "invalid_json")
    assert statuses == {200, 400}


@pytest.mark.parametrize(
    "path", ["/nothing", "/prompts", "/prompt/x", "/v1/nothing", "/../etc/passwd"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_another_path_is_404(app: App, path: str, method: str) -> None:
    assert_error(app.client.open(path, method=method), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/prompt"),
        ("PUT", "/prompt"),
        ("GET", "/echo"),
        ("POST", "/healthz"),
        ("POST", "/metrics"),
        ("DELETE", "/readyz"),
        ("BREW", "/prompt"),
    ],
)
def test_another_method_is_405_and_says_which_are_allowed(app: App, method: str, path: str) -> None:
    response = app.client.open(path, method=method)
    assert_error(response, 405, "method_not_allowed")
    assert ("POST" if path in ("/prompt", "/echo") else "GET") in response.headers["Allow"]


_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20)
_NUMBERS = (
    st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False)
    | st.sampled_from([math.inf, -math.inf])
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5),
    max_leaves=12,
)
_FIELDS = ("sampling_steps", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stream")
_BODIES = st.fixed_dictionaries(
    {"prompt": _JSON | _TEXT | st.lists(_TEXT, max_size=3)},
    optional={**dict.fromkeys(_FIELDS, _JSON), "ignore_eos": st.booleans()},
)


def _dump(value: Any) -> bytes:
    """JSON with numbers beyond a float's range where Python would write Infinity."""
    return json.dumps(value).replace("Infinity", "1e999").encode()


@settings(max_examples=150, deadline=None, database=None)
@given(
    value=_JSON | _BODIES | st.fixed_dictionaries({"prompt": _JSON}),
    path=st.sampled_from(["/prompt", "/echo"]),
)
def test_any_json_gets_a_json_answer_and_never_a_500(app: App, value: Any, path: str) -> None:
    response = app.post(_dump(value), path)
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert_error_form(response)
    elif response.mimetype == "text/event-stream":
        sse_events(response.data)
    else:
        assert isinstance(parse_json(response.data), dict)


@settings(max_examples=100, deadline=None, database=None)
# No JSON: hypothesis also draws the constants of all modules that are loaded.
@given(
    body=st.binary(max_size=60).filter(lambda body: not body.startswith(b"{")),
    path=st.sampled_from(["/prompt", "/echo"]),
)
def test_any_bytes_get_a_client_error(app: App, body: bytes, path: str) -> None:
    response = app.post(body, path)
    assert response.status_code == 400
    assert_error_form(response)


def test_bad_input_leaves_the_engine_idle(serve: Serve) -> None:
    app = serve()
    for body in (b"{", _body(stop=5), _body(prompt=["x", ""]), _body(sampling_steps=0)):
        app.post(body)
    assert (
        app.engine.stats().steps,
        app.engine.stats().active,
        app.engine.stats().queued,
    ) == (0, 0, 0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_a_compressed_body_is_415(app: App, encoding: str) -> None:
    body = gzip.compress(b'{"prompt": 1}')
    headers = {"Content-Encoding": encoding}
    response = app.client.post("/echo", data=body, headers=headers, content_type="application/json")
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/v1//models", "/v1/models/", "//v1/models", "/v1/models//"])
def test_slashes_too_many_are_none(app: App, path: str) -> None:
    found = app.client.get("/", environ_overrides={"PATH_INFO": path})
    assert found.json == app.client.get("/v1/models").json


@pytest.mark.parametrize("path", ["/v1/nothing/", "//nothing", "/v1/models/nothing/", "/echo/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_no_error_is_html(app: App, method: str, path: str) -> None:
    response = app.client.open(
        method=method, headers={"Accept": "text/html"}, environ_overrides={"PATH_INFO": path}
    )
    assert response.status_code in (404, 405)
    assert response.mimetype == "application/json"


@pytest.mark.parametrize("target", ["http://evil.com/echo", "HTTPS://evil.com:80/echo"])
def test_a_target_for_another_host_is_refused_whatever_the_header_says(
    app: App, target: str
) -> None:
    response = app.client.post("/echo", json={"prompt": 1}, environ_overrides={"RAW_URI": target})
    assert_error(response, 403, "forbidden")


def test_a_target_with_our_own_host_is_answered(app: App) -> None:
    target = {"RAW_URI": "http://localhost/echo"}
    response = app.client.post("/echo", json={"prompt": 1}, environ_overrides=target)
    assert response.status_code == 200
