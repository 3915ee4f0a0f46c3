"""Versions that come and go, in a directory that a server of fakes looks at."""

import signal
from pathlib import Path
from typing import Any

import pytest

from testing.server import SERVE, serve_slowly, version_states
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

SLOWLY = serve_slowly(0.1)
# Without a terminal, the end of which sends SIGHUP too.
DETACHED = "import os; os.setsid(); from gemma_server.cli.main import main; main()"


def fake_versions(base: Path, *numbers: int) -> None:
    """Directories that the fake takes for versions."""
    for number in numbers:
        (base / str(number)).mkdir(parents=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An empty directory of versions."""
    (tmp_path / "versions").mkdir()
    return tmp_path / "versions"


def test_without_polls_a_signal_has_it_look(start: Start, base: Path) -> None:
    fake_versions(base, 7)
    flags = ("--model-base-path", str(base), "--model-poll-seconds", "0", "--model-name", "m")
    server = start("-c", DETACHED, *SERVE[2:], *flags)
    assert server.prompt("a").json["model_version"] == "7"
    assert "m version 7 takes requests" in server.stderr
    fake_versions(base, 8)
    assert version_states(server, "m") == {"7": "AVAILABLE"}
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.prompt("a").json["model_version"] == "8", 20)
    wait_until(lambda: version_states(server, "m") == {"8": "AVAILABLE", "7": "END"}, 20)
    assert server.prompt("a", model="m@7").status == 503


def test_it_waits_for_the_first_version(start: Start, base: Path) -> None:
    server = start(*SERVE, "--model-base-path", str(base), ready=False)
    wait_until(lambda: "has no version yet" in server.stderr, 30)
    fake_versions(base, 1)
    answer: Any = server.wait_ready().ask("GET", "/readyz").json
    assert (answer["status"], answer["model"]) == ("ready", "versions")


def test_requests_finish_on_the_version_that_they_began_on(start: Start, base: Path) -> None:
    fake_versions(base, 1)
    server = start(*SLOWLY, "--model-base-path", str(base), "--model-poll-seconds", "0.1")
    stream = server.stream("x" * 40)
    fake_versions(base, 2)
    wait_until(lambda: version_states(server, "versions").get("1") == "UNLOADING", 20)
    assert server.prompt("a").json["model_version"] == "2"
    assert stream.text() == "x" * 40
    wait_until(lambda: version_states(server, "versions").get("1") == "END", 20)
