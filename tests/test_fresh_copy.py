"""As a stranger would: a clean copy, an empty home, and the README's commands as written.

Only what pip and Go once downloaded or compiled is the machine's own; with `--long` not even that.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real_model, pytest.mark.fresh_copy]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
READY = re.compile(r"gemma-server ready: http://127\.0\.0\.1:20200 \(gemma-3-270m, .+, [\d.]+ s\)")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
SETUP_S = 1200  # downloads a few hundred megabytes


def readme_commands() -> list[str]:
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    commands: list[str] = []
    for block in blocks:
        begun = ""
        for line in block.replace("\\\n", " ").splitlines():
            begun += line
            if not _is_whole(begun):
                begun += "\n"
            elif begun.strip():
                commands.append(begun)
                begun = ""
        assert not begun.strip(), f"the README has no end of: {begun}"
    return commands


def _is_whole(command: str) -> bool:
    """Whether a shell would run it, and not wait for the end of a quotation."""
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


@dataclass
class Copy:
    """A clean copy of the repository, and the environment of a stranger."""

    root: Path
    environment: dict[str, str]

    def run(self, command: str, timeout_s: float = 300) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, **more: str) -> "subprocess.Popen[str]":
        with (self.root / "server.log").open("a") as log:
            return subprocess.Popen(
                ["./run-gemma-server.sh"],
                cwd=self.root,
                env={**self.environment, **more},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )


@pytest.fixture(scope="module")
def copy(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    root = tmp_path_factory.mktemp("clone")
    home = tmp_path_factory.mktemp("home")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    # No virtual environment of ours in front, and an interpreter outside of it.
    inside = str(Path(sys.prefix) / "bin")
    path = [part for part in os.environ["PATH"].split(":") if part != inside]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    kept.pop("VIRTUAL_ENV", None)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    environment = {**kept, "HOME": str(home), "PATH": ":".join(path), "PYTHON": str(base)}
    return Copy(root, environment if pytestconfig.getoption("long") else _caches() | environment)


def _caches() -> dict[str, str]:
    """The variables that lead pip and Go to what this machine's user has of their downloads."""
    asking = [sys.executable, "-m", "pip", "cache", "dir", "--disable-pip-version-check"]
    asked = {"PIP_CACHE_DIR": asking}
    asked |= {
        name: [str(ROOT / "scripts/go.sh"), "env", name] for name in ("GOCACHE", "GOMODCACHE")
    }
    return {
        name: subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        for name, command in asked.items()
    }


def _wait_ready(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert READY.fullmatch(line.strip()), line
    return line


def _stop(server: "subprocess.Popen[str]") -> int:
    server.send_signal(signal.SIGTERM)
    code = server.wait(30)
    assert server.stdout is not None
    rest = server.stdout.read()
    server.stdout.close()
    assert rest == "", "standard output holds the ready line and nothing else"
    return code


@pytest.fixture(scope="module")
def running(copy: Copy) -> Iterator[Copy]:
    server = copy.start()
    try:
        _wait_ready(server)
        yield copy
        assert _stop(server) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def test_every_command_of_the_readme_works_as_written(running: Copy) -> None:
    commands = readme_commands()
    assert "./run-gemma-server.sh" in commands
    assert "./scripts/test.sh" in commands
    for command in commands:
        if command in ("./run-gemma-server.sh", "./scripts/test.sh"):
            continue  # the one is running, the other runs this
        output = running.run(command)
        assert output.strip(), command
        if "/prompt" in command:
            assert '"finish_reason"' in output, output


def test_the_go_commands_print_what_they_promise(running: Copy) -> None:
    answer = running.run('./scripts/go.sh -C clients/go run ./cmd/ask -steps 8 "One, two, three,"')
    assert answer.startswith(" four, five")
    table = running.run("./scripts/go.sh -C clients/go run ./cmd/measure-latency -n 200")
    for word in ("mean", "p50", "p90", "p99", "rate"):
        assert word in table


def test_the_first_start_says_what_it_is_doing(running: Copy) -> None:
    log = (running.root / "server.log").read_text()
    for words in ("making .venv", "installing", "compiling", "loading weights", "curl"):
        assert words in log


def test_a_second_start_touches_no_network_and_is_quick(copy: Copy, running: Copy) -> None:
    """Port 20200 is taken by the first, so this one gets another; nothing can be downloaded."""
    server = copy.start(**NO_NETWORK, PIP_NO_INDEX="1", PIP_FIND_LINKS="", GEMMA_PORT="0")
    try:
        assert server.stdout is not None
        assert "gemma-server ready" in server.stdout.readline()
        assert _stop(server) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    log = (copy.root / "server.log").read_text()
    assert log.count("installing") == 1
