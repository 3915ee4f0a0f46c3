"""The requests in docs/api.md, run as they are written; the answers have the form shown there."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_server.web.page import ROUTES
from testing.server import SERVE, Server

pytestmark = pytest.mark.slow

NAME = "gemma-3-270m"
API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# "$ curl ..." up to the address, and below it the answer, all of it indented.
EXAMPLE = re.compile(
    r"^    \$ (curl .*?localhost:20200\S+)\n((?:    [^\n]*\n|\n(?=    [^ $]))+)", re.M | re.S
)
EXAMPLES = [
    (command, re.sub("^    ", "", shown, flags=re.M)) for command, shown in EXAMPLE.findall(API)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake under the name that the docs use."""
    flags = ("--model-name", NAME)
    server = Server(tmp_path_factory.mktemp("server"), (*SERVE, *flags))
    try:
        yield server.wait_ready()
    finally:
        server.end()


def test_every_route_has_an_example_and_one_of_its_stream() -> None:
    shown = {
        (
            command.rpartition("localhost:20200")[2]
            .replace(NAME, "{name}")
            .replace("/versions/1", "/versions/{version}"),
            len(documents(answer)) > 1,
        )
        for command, answer in EXAMPLES
    }
    # One checkpoint has no labels: tests/web/test_versions.py asks for these.
    paths = {each.path for each in ROUTES if each.path and "{label}" not in each.path}
    assert paths == {path for path, _ in shown}
    streams = {path for path, is_stream in shown if is_stream}
    assert {each.path for each in ROUTES if each.stream} - streams == {"/api/generate"}


@pytest.mark.parametrize(("command", "answer"), EXAMPLES, ids=lambda text: text[-40:].strip())
def test_an_example_runs_and_its_answer_has_that_form(
    server: Server, embedding_server: Server, command: str, answer: str
) -> None:
    port = (embedding_server if "embeddinggemma" in command else server).port
    command = command.replace("localhost:20200", f"127.0.0.1:{port}")
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS ", 1)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    if shown := documents(answer):
        assert_form(without_repeats(documents(done.stdout)), without_repeats(shown))
    else:
        assert_form(done.stdout.strip(), answer.strip())


def documents(answer: str) -> list[Any]:
    """The JSON documents of an answer, be they lines, events, or the one that it is; `...` is a
    key in an object that has more, and an item in such a list. None of plain text."""
    if not answer.startswith(("{", "[{", "data: ")):
        return []
    text = re.sub("^data: ", "", answer, flags=re.M).replace("[DONE]", '"[DONE]"')
    text = text.replace(", ...]", ', "..."]').replace("...}", '"...": 0}').strip()
    found = []
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:].strip()
    return found


def without_repeats(parts: list[Any]) -> list[Any]:
    """The parts of a stream, without those that only bring more text: the fake has as many as it
    has bytes."""
    return [
        part
        for last, part in zip([None, *parts], parts, strict=False)
        if shape(last) != shape(part)
    ]


def shape(document: Any) -> Any:
    """The names of all fields, and the types of their values."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    if isinstance(document, list):
        return [shape(value) for value in document]
    return type(document)


def assert_form(found: Any, shown: Any) -> None:
    """The same fields with values of the same types; strings are the same but for `...`, and for
    the text itself, which is the fake's."""
    if isinstance(shown, dict):
        open_ended = "..." in shown
        names = set(shown) - {"..."}
        assert names <= set(found) if open_ended else names == set(found)
        for name in names:
            if name in ("response", "content", "text") and isinstance(shown[name], str):
                assert isinstance(found[name], str)
            else:
                assert_form(found[name], shown[name])
    elif isinstance(shown, list):
        if "..." in shown[1:]:
            shown = shown[: shown.index("...")]
            found = found[: len(shown)]
        assert len(found) == len(shown)
        for one, other in zip(found, shown, strict=True):
            assert_form(one, other)
    elif isinstance(shown, str):
        pattern = ".*".join(map(re.escape, shown.split("...")))
        assert re.fullmatch(pattern, found, re.S), (found, shown)
    else:
        assert type(found) is type(shown)
