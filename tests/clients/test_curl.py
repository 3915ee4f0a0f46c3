"""What somebody types into a terminal."""

import json
import shutil
import subprocess

import pytest

from testing.answers import parse_json, sse_events
from testing.server import LONG, Server
from testing.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
GENERATE = {"model": "fake", "prompt": "hey", "raw": True, "options": {"temperature": 0}}


def curl_command(server: Server, path: str, body: object, *flags: str) -> list[str]:
    """POST the body; `--json` needs curl 7.82, so this is the long form."""
    return [
        *("curl", "--silent", "--show-error", *flags),
        *("--header", "Content-Type: application/json", "--data", json.dumps(body)),
        f"http://127.0.0.1:{server.port}{path}",
    ]


def curl(server: Server, path: str, body: object, *flags: str) -> subprocess.CompletedProcess[str]:
    """POST the body and wait for the end."""
    command = curl_command(server, path, body, *flags)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_plain(server: Server) -> None:
    chat = parse_json(curl(server, "/v1/chat/completions", CHAT).stdout)
    assert chat["choices"][0]["message"]["content"] == "user\nHi"
    generated = parse_json(curl(server, "/api/generate", {**GENERATE, "stream": False}).stdout)
    assert (generated["response"], generated["eval_count"]) == ("hey", 4)


def test_streamed(server: Server) -> None:
    lines = curl(server, "/api/generate", GENERATE, "--no-buffer").stdout.splitlines()
    assert "".join(parse_json(line)["response"] for line in lines) == "hey"
    events = sse_events(
        curl(server, "/v1/chat/completions", {**CHAT, "stream": True}).stdout.encode()
    )
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "user\nHi"


def test_an_error_is_an_exit_code_for_those_who_ask(server: Server) -> None:
    refused = curl(server, "/api/generate", {**GENERATE, "model": "other"}, "--fail-with-body")
    assert (refused.returncode, parse_json(refused.stdout)) == (
        22,
        {"error": "model 'other' not found"},
    )


def test_its_time_limit_frees_the_slot(slow_server: Server) -> None:
    late = curl(slow_server, "/api/generate", {**GENERATE, "prompt": LONG}, "--max-time", "0.5")
    assert late.returncode == 28
    wait_until(lambda: slow_server.load() == (0, 0))
