"""The requests in docs/api.md, run as they are written; the answers have the form shown there."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.sidecar import SERVE, Server
from tests.web.conftest import parse_json

pytestmark = pytest.mark.slow

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# "$ curl ..." up to the address, then a JSON object, all of it indented.
EXAMPLE = re.compile(r"^    \$ (curl .*?localhost:20200\S+)\n((?:    [^\n]*\n)+)", re.M | re.S)
EXAMPLES = [(command, answer) for command, answer in EXAMPLE.findall(API)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake under the name that the docs use."""
    flags = ("--model-name", "gemma-3-270m")
    server = Server(tmp_path_factory.mktemp("server"), (*SERVE, *flags))
    try:
        yield server.wait_ready()
    finally:
        server.end()


def test_there_are_examples_of_every_way_to_generate() -> None:
    paths = {command.rpartition("localhost:20200")[2] for command, _ in EXAMPLES}
    chats, texts = {"/v1/chat/completions", "/api/chat"}, {"/v1/completions", "/api/generate"}
    assert {"/prompt", "/echo", *chats, *texts} <= paths


@pytest.mark.parametrize(("command", "answer"), EXAMPLES, ids=lambda text: text[-40:].strip())
def test_an_example_runs_and_its_answer_has_that_form(
    server: Server, command: str, answer: str
) -> None:
    command = command.replace("localhost:20200", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS ", 1)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    shown = parse_json(re.sub(r"\.\.\.}", '"...": 0}', answer))
    assert_form(parse_json(done.stdout), shown)


def assert_form(found: Any, shown: Any) -> None:
    """The same fields with values of the same types; strings are the same but for `...`, and for
    the text itself, which is the fake's."""
    if isinstance(shown, dict):
        open_ended = "..." in shown
        names = set(shown) - {"..."}
        assert names <= set(found) if open_ended else names == set(found)
        for name in names:
            if name in ("response", "content"):
                assert isinstance(found[name], str)
            else:
                assert_form(found[name], shown[name])
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for one, other in zip(found, shown, strict=True):
            assert_form(one, other)
    elif isinstance(shown, str):
        pattern = ".*".join(map(re.escape, shown.split("...")))
        assert re.fullmatch(pattern, found, re.S), (found, shown)
    else:
        assert type(found) is type(shown)
