"""Models that come when they are asked for, and leave, among fakes; and an operator's verbs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gemma_server.cli.main import main
from testing.http_client import Answer
from testing.server import SERVE, Server, serve_with_runner, version_states
from testing.waiting import wait_until
from tests.server.conftest import Start
from tests.server.test_versions import fake_versions

pytestmark = pytest.mark.slow

ON_REQUEST = """
[models.a]
base_path = "a"
[models.b]
base_path = "b"
load = "request"
max_queue = 20
[models.c]
checkpoint = "missing.gguf"
load = "request"
"""


def models_file(tmp_path: Path, text: str = ON_REQUEST) -> tuple[str, ...]:
    """The flags for a file of models, whose versions are there."""
    fake_versions(tmp_path / "a", 1, 2)
    fake_versions(tmp_path / "b", 3)
    (tmp_path / "models.toml").write_text(text)
    return ("--model-config-file", str(tmp_path / "models.toml"), "--model-poll-seconds", "0.1")


def gemma_server(address: str, *arguments: str) -> Result:
    """A command that asks the server at an address."""
    return CliRunner().invoke(main, [*arguments, "--server", address])


def patient(server: Server, milliseconds: int, model: str) -> Answer:
    """The answer to a prompt of a client that waits so long."""
    headers = {"X-Request-Timeout-Ms": str(milliseconds)}
    return server.ask("POST", "/prompt", {"prompt": "x", "model": model}, **headers)


def test_all_who_ask_for_a_model_at_once_wait_for_its_one_load(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slowly = serve_with_runner(f"functools.partial(when_allowed, {str(gate)!r})")
    server = start(*slowly, *models_file(tmp_path))
    assert version_states(server, "b") == {"3": "START"}
    gate.unlink()
    with ThreadPoolExecutor(21) as pool:
        asking = [pool.submit(server.prompt, "x", model="b") for _ in range(20)]
        wait_until(lambda: server.metrics()['gemma_model_waiting{model="b"}'] == 20, 20)
        one_more = server.prompt("x", model="b")
        assert (one_more.status, one_more.error["code"]) == (429, "overloaded")  # by its max_queue
        assert patient(server, 5000, "a").status == 200  # others are not held up
        gate.touch()
        answers = [each.result() for each in asking]
    assert {each.status for each in answers} == {200}
    assert {each.headers["X-Model-Version"] for each in answers} == {"3"}
    assert server.metrics()['gemma_model_loads_total{model="b",result="available"}'] == 1


def test_who_has_no_time_is_told_so(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slowly = serve_with_runner(f"functools.partial(when_allowed, {str(gate)!r})")
    server = start(*slowly, *models_file(tmp_path))
    gate.unlink()
    hurried = patient(server, 300, "b")
    assert (hurried.status, hurried.error["code"]) == (504, "deadline")
    gate.touch()
    assert server.prompt("x", model="b").status == 200
    assert server.prompt("x", model="b@4").status == 404


def test_an_operator_sees_loads_and_unloads(start: Start, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path / 's'}"
    server = start(*SERVE, "--uds", str(tmp_path / "s"), *models_file(tmp_path))
    listed = gemma_server(socket, "models")
    assert listed.exit_code == 0, listed.output
    rows = [line.split() for line in listed.output.splitlines()]
    assert rows[1][:3] == ["a", "2", "AVAILABLE"]
    assert ["b", "3", "START"] in rows
    assert gemma_server(socket, "load", "b").output == "b takes requests\n"
    assert version_states(server, "b") == {"3": "AVAILABLE"}
    assert gemma_server(socket, "unload", "b").exit_code == 0
    wait_until(lambda: version_states(server, "b") == {"3": "START"}, 20)
    unknown = gemma_server(socket, "unload", "x")
    assert (unknown.exit_code, "model 'x' not found" in unknown.output) == (1, True)


def test_what_is_an_operator_s_needs_a_key_or_the_socket(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    flags = (*SERVE, *models_file(tmp_path))
    anybody, keyed = (
        f"http://127.0.0.1:{start(*flags, *more).port}"
        for more in ((), ("--api-key-file", str(keys)))
    )
    refused = gemma_server(anybody, "load", "b")
    assert (refused.exit_code, "needs an API key" in refused.output) == (1, True)
    assert gemma_server(keyed, "load", "b").exit_code == 1
    loaded = gemma_server(keyed, "load", "b", "--api-key-file", str(keys))
    assert loaded.output == "b takes requests\n"


def test_ollama_s_keep_alive(start: Start, tmp_path: Path) -> None:
    server = start(*SERVE, *models_file(tmp_path))

    def generate(**fields: Any) -> dict[str, Any]:
        body = {"model": "b", "stream": False, **fields}
        answer = server.ask("POST", "/api/generate", body)
        assert answer.status == 200, answer.body
        document: dict[str, Any] = json.loads(answer.body)
        return document

    def leaves() -> dict[str, str]:
        listed = server.ask("GET", "/api/ps").json["models"]
        return {each["name"]: each["expires_at"][:4] for each in listed}

    names = [each["name"] for each in server.ask("GET", "/api/tags").json["models"]]
    assert names == ["a", "b", "c"]
    assert leaves() == {"a": "9999"}
    assert generate()["done_reason"] == "load"
    assert leaves() == {"a": "9999", "b": "9999"}
    assert generate(prompt="x", keep_alive="1h")["response"]
    assert leaves()["b"] < "9999"
    assert generate(keep_alive=0)["done_reason"] == "unload"
    wait_until(lambda: leaves() == {"a": "9999"}, 20)
    assert generate(prompt="x", keep_alive="100ms")["response"]
    wait_until(lambda: leaves() == {"a": "9999"}, 20)
    dismissed = 'gemma_model_dismissals_total{model="b",reason="expired"}'
    assert server.metrics()[dismissed] == 1
    assert "b leaves memory: nobody has asked for it" in server.stderr


def test_requests_of_one_affinity_share_a_version(start: Start, tmp_path: Path) -> None:
    text = '[models.a]\nbase_path = "a"\nversions = 2\nweights = { 1 = 50, 2 = 50 }\n'
    server = start(*SERVE, *models_file(tmp_path, text))
    wait_until(lambda: set(version_states(server, "a").values()) == {"AVAILABLE"}, 20)

    def versions(affinity: str) -> set[str]:
        headers = {"X-Affinity": affinity} if affinity else {}
        answers = [server.ask("POST", "/prompt", {"prompt": "x"}, **headers) for _ in range(20)]
        return {each.json["model_version"] for each in answers}

    assert versions("") == {"1", "2"}
    each = [versions(f"conversation {number}") for number in range(12)]
    assert all(len(one) == 1 for one in each)
    assert set[str]().union(*each) == {"1", "2"}
