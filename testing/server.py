"""A server process as anybody would start it."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testing import kept_programs
from testing.answers import parse_metrics
from testing.http_client import Answer, Stream, ask, send
from testing.waiting import wait_until

READY = re.compile(
    r"gemma-server ready: (?:http://127\.0\.0\.1:(\d+)|unix:(\S+)) "
    r"\([^,\n]+, [^,\n]+, \d+\.\d s\)\n"
)
# A head but for its end.
POST_ECHO = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = "x" * 1000  # a prompt that a slow server answers for long
SERVE = ("-m", "gemma_server", "serve", "--fake", "--port", "0")
GUNICORN = ("-m", "gunicorn")
BY_HAND = (
    *GUNICORN,
    "-c",
    "python:gemma_server.server.gunicorn_conf",
    "gemma_server.server.worker:create_app()",
)
START_S = 180.0  # a tiny real model compiles, maybe beside others

_PATCHED = """
import functools, pathlib, time
import gemma_server.serving.loader as loader
Real = loader.FakeRunner
def when_allowed(path, *args, **options):
    while not pathlib.Path(path).exists():
        time.sleep(0.02)
    return Real(*args, **options)
loader.FakeRunner = {runner}
from gemma_server.cli.main import main
main()
"""


def serve_with_runner(runner: str, *flags: str) -> tuple[str, ...]:
    """Arguments for a server whose fake runner is made by this expression over `Real`."""
    return ("-c", _PATCHED.format(runner=runner), *SERVE[2:], *flags)


_GEMMA4 = """
import functools, sys
sys.path.append({root!r})
import gemma_server.serving.loader as loader
from gemma_server.text.gemma4_template import Gemma4Template
from testing.chats import SayingRunner, gemma4_tokenizer
loader.FakeRunner = functools.partial(SayingRunner, says={says!r}, then={then!r})
loader.fake_tokenizer = gemma4_tokenizer
loader.GemmaTemplate = functools.partial(Gemma4Template, opens_thought=False)
from gemma_server.cli.main import main
main()
"""


def serve_gemma4(says: str, then: str) -> tuple[str, ...]:
    """Arguments for a server whose fake has Gemma 4's template and says this turn, in which control
    tokens are spelled; and then, after a tool's response, another one."""
    root = str(Path(__file__).parents[1])
    return ("-c", _GEMMA4.format(root=root, says=says, then=then), *SERVE[2:])


def serve_slowly(step_s: float, *flags: str) -> tuple[str, ...]:
    """Arguments for a server that takes `step_s` for each token."""
    return serve_with_runner(f"functools.partial(Real, step_s={step_s})", *flags)


def serve_when(gate: Path, port: int) -> tuple[str, ...]:
    """Arguments for a server on this port that loads until there is a file `gate`."""
    runner = f"functools.partial(when_allowed, {str(gate)!r})"
    return serve_with_runner(runner, "--port", str(port))


def clean_environment(home: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """An environment with none of our variables in it, but where tests keep programs."""
    kept = kept_programs.variables()
    return {"PATH": os.environ["PATH"], "HOME": str(home), **kept, **(extra or {})}


def run(
    home: Path, args: Sequence[str], env: dict[str, str] | None = None, timeout_s: float = START_S
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments until it ends by itself."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=home,
        env=clean_environment(home, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Server:
    """One server process in a home of its own."""

    def __init__(
        self,
        home: Path,
        args: Sequence[str] = SERVE,
        env: dict[str, str] | None = None,
        port: int | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self._port = port  # if it is known before the ready line
        self._out, self._err = home / "stdout", home / "stderr"
        self._workers: list[int] = []
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *args],
                cwd=home,
                env=clean_environment(home, env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=fds,
            )

    @property
    def stdout(self) -> str:
        """All it wrote to standard output."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """All it wrote to standard error."""
        return self._err.read_text()

    @property
    def port(self) -> int:
        """The port of the last ready line."""
        return self._port or int(READY.findall(self.stdout)[-1][0])

    @property
    def worker(self) -> int:
        """The worker's process id."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        [worker] = map(int, children)
        if worker not in self._workers:
            self._workers.append(worker)
        return worker

    def said(self, text: str) -> bool:
        """Whether it has written this to standard output."""
        return text in self.stdout

    @property
    def has_worker(self) -> bool:
        """Whether the master has forked."""
        pid = self.process.pid
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def wrote(self, name: str) -> bool:
        """Whether it has made a file of this name in its working directory."""
        return (self._out.parent / name).exists()

    def wait_ready(self, times: int = 1) -> "Server":
        """Wait for the ready line, or for so many of them."""

        def ready() -> bool:
            assert self.process.poll() is None, self.stderr
            return len(READY.findall(self.stdout)) >= times

        wait_until(ready, START_S)
        assert self.worker
        return self

    def connect(self, timeout_s: float = 60.0) -> http.client.HTTPConnection:
        """A connection that is kept alive."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def open_socket(self, data: bytes = b"") -> socket.socket:
        """A socket that has sent `data`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def ask(self, method: str, path: str, document: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            return ask(connection, method, path, document, **headers)
        finally:
            connection.close()

    def prompt(self, prompt: Any, **fields: Any) -> Answer:
        """POST /prompt."""
        return self.ask("POST", "/prompt", {"prompt": prompt, **fields})

    def stream(self, prompt: str, **fields: Any) -> Stream:
        """POST /prompt, up to the answer's head."""
        connection = self.connect()
        send(connection, "POST", "/prompt", {"prompt": prompt, "stream": True, **fields})
        return Stream(connection)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by series."""
        return parse_metrics(self.ask("GET", "/metrics").body.decode())

    def load(self) -> tuple[float, float]:
        """Slots at work, and requests in the line."""
        metrics = self.metrics()
        return metrics["gemma_slots_busy"], metrics["gemma_queue_requests"]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for worker in self._workers:
            if is_our_server(worker):
                os.kill(worker, signal.SIGKILL)


def version_states(server: Server, model: str) -> dict[str, str]:
    """The state of each version of a model."""
    answer = server.ask("GET", f"/v1/models/{model}").json
    return {each["version"]: each["state"] for each in answer["model_version_status"]}


def is_our_server(pid: int) -> bool:
    """Whether this process still runs, and is a server of ours and not a later one's number."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"gemma_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def assert_refused(returncode: int, expected: int, stderr: str, *words: str) -> None:
    """It ended with this code, and said why in one line that has the words."""
    assert returncode == expected, stderr
    assert "Traceback" not in stderr
    reasons = [line for line in stderr.splitlines() if all(word in line for word in words)]
    assert len(reasons) == 1, stderr
    assert_one_line(reasons[0], *words)


def assert_one_line(reason: str, *words: str) -> None:
    """It is a line that a person reads, and has the words."""
    assert all(word in reason for word in words), reason
    assert "\n" not in reason
    assert len(reason) < 400


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True
