"""Clients that come while the model loads: some wait for it, the others are told."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from testing.answers import parse_json
from testing.server import START_S, Server, free_port, listens, serve_when
from testing.waiting import wait_until
from tests.clients.test_curl import GENERATE, curl_command
from tests.clients.test_ollama_python import connect

pytestmark = pytest.mark.slow


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Once this file is there, the model is."""
    return tmp_path / "gate"


@pytest.fixture
def server(tmp_path: Path, gate: Path) -> Iterator[Server]:
    """A server that still loads."""
    port = free_port()
    server = Server(tmp_path, serve_when(gate, port), port=port)
    try:
        wait_until(lambda: listens(port), START_S)
        yield server
    finally:
        server.end()


def test_it_is_told_or_waited_for(server: Server, gate: Path) -> None:
    with connect(server) as client, pytest.raises(ollama.ResponseError, match="loading") as told:
        client.generate("fake", "Hi")
    assert told.value.status_code == 503

    waiting = subprocess.Popen(
        curl_command(
            server, "/api/generate", {**GENERATE, "stream": False}, "--fail", "--retry", "5"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    statuses: list[int] = []

    def open_the_gate(response: Any) -> None:
        statuses.append(response.status_code)
        wait_until(lambda: _refused(server) >= 3)  # curl and ollama too
        gate.touch()

    with (
        openai.DefaultHttpxClient(event_hooks={"response": [open_the_gate]}) as http,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", http_client=http
        ) as patient,
    ):
        answer = patient.completions.create(model="fake", prompt="hey", temperature=0)
    assert (answer.choices[0].text, statuses) == ("hey", [503, 200])
    output, _ = waiting.communicate(timeout=30)
    assert parse_json(output)["response"] == "hey"


def _refused(server: Server) -> float:
    metrics = server.metrics().items()
    return sum(count for name, count in metrics if "requests_total" in name and "503" in name)
