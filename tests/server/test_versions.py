"""Versions that come and go, in a directory that a server of fakes looks at."""

import signal
from pathlib import Path
from typing import Any

import pytest

from testing.server import SERVE, START_S, assert_refused, run, serve_slowly, version_states
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
    wait_until(lambda: "has no version yet" in server.stderr, START_S)
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


def test_swaps_leave_no_threads_and_no_descriptors(start: Start, base: Path) -> None:
    fake_versions(base, 1)
    server = start(*SERVE, "--model-base-path", str(base), "--model-poll-seconds", "0.05")
    process = Path(f"/proc/{server.worker}")

    def held() -> tuple[int, int]:
        return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))

    def swap(number: int) -> None:
        fake_versions(base, number)
        gone = {str(number): "AVAILABLE", str(number - 1): "END"}
        wait_until(lambda: gone.items() <= version_states(server, "versions").items(), 20)

    swap(2)
    before, swaps = held(), 10
    for number in range(3, 3 + swaps):
        swap(number)
    # A few more, where requests overlapped; not some for each swap.
    assert all(now < then + swaps // 2 for now, then in zip(held(), before, strict=True))


def test_a_file_of_models(start: Start, base: Path) -> None:
    fake_versions(base / "a", 1, 2)
    fake_versions(base / "b", 5)
    file = base / "models.toml"
    file.write_text(
        """
        default = "b"
        [models.a]
        base_path = "a"
        versions = "all"
        labels = {stable = 1}
        slots = 3
        [models.b]
        base_path = "b"
        """
    )
    flags = ("--model-config-file", str(file), "--model-poll-seconds", "0.1")
    server = start(*SERVE, *flags)
    assert server.prompt("x").json["model_version"] == "5"
    wait_until(lambda: len(server.ask("GET", "/v1/models").json["data"]) == 2, 20)
    asked = {"a": "2", "a@1": "1", "a:stable": "1", "a@2": "2", "b": "5"}
    for name, number in asked.items():
        assert server.prompt("x", model=name).json["model_version"] == number
    slots = {
        line.split("}")[0].partition("{")[2]: line.split()[-1]
        for line in server.ask("GET", "/metrics").body.decode().splitlines()
        if line.startswith("gemma_slots{")
    }
    assert slots == {
        'model="a",version="1"': "3.0",
        'model="a",version="2"': "3.0",
        'model="b",version="5"': "8.0",
    }
    whole = file.read_text()
    file.write_text(whole.replace("slots", "slotz"))
    wait_until(lambda: "models.a.slotz" in server.stderr, 20)
    assert server.prompt("x", model="a:stable").json["model_version"] == "1"
    # The first model goes; the other is the first then.
    without = whole.partition("[models.b]")[0].replace('default = "b"', "")
    file.write_text(without.replace("stable = 1", "stable = 2"))
    wait_until(lambda: server.prompt("x", model="b").status == 404, 20)
    wait_until(lambda: server.prompt("x", model="a:stable").json["model_version"] == "2", 20)
    assert server.prompt("x").json["model_version"] == "2"
    assert server.ask("GET", "/readyz").json["model"] == "a"


def test_a_bad_file_of_models_ends_the_start(home: Path) -> None:
    (home / "models.toml").write_text('[models.a]\nbase_path = "a"\nslots = 0')
    flags = ("--model-config-file", "models.toml")
    ended = run(home, (*SERVE, *flags))
    assert_refused(ended.returncode, 2, ended.stderr, "models.a.slots", "greater")
    ended = run(home, (*SERVE, *flags, "--model-base-path", "a"))
    assert_refused(ended.returncode, 2, ended.stderr, "exclude each other")
