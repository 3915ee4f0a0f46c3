"""What a request costs before any work of the model, next to a bare Flask app on gunicorn.

    python -m benchmarks.echo [--rounds N] [-n REQUESTS]

POST /echo of gemma-server (`serve --fake`: no jax in the process, the same routes, guards and
worker), and of a Flask app that does nothing else, on gunicorn's default sync worker and on its
gthread worker with 8 threads. All three run at once, but only one at a time is asked: in every
round the Go tool `measure-latency` sends its requests to one after the other, in sequence over one
keep-alive connection. The sync worker closes the connection after each answer, so its times include
opening the next one. Ours is asked once more beside 64 idle connections, each kept from an echo.

Mean, p50 and p99 are medians over the rounds. The last line of standard output is the result as
one JSON document.
"""

import argparse
import http.client
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, request

from benchmarks.servers import (
    ROOT,
    Server,
    end_servers_on_sigterm,
    positive,
    serving,
)
from gemma_server.cli.report import Summary, format_table

OURS = "gemma-server"
BESIDE_IDLE = "gemma-server, 64 idle"
IDLE = 64
_BARE = (
    "-m",
    "gunicorn",
    "benchmarks.echo:bare_app()",
    "--bind=127.0.0.1:0",
    "--no-control-socket",
)
SERVERS = {
    OURS: ("-m", "gemma_server", "serve", "--fake", "--port=0"),
    "bare Flask, sync": _BARE,
    "bare Flask, gthread": (*_BARE, "--worker-class=gthread", "--threads=8"),
}
FIGURES = {"mean_us": "mean us", "p50_us": "p50 us", "p99_us": "p99 us"}

Samples = defaultdict[str, list[float]]


def bare_app() -> Flask:
    """The least that Flask needs to echo a prompt."""
    app = Flask(__name__)

    @app.post("/echo")
    def echo() -> dict[str, Any]:
        return {"echo_prompt": request.json["prompt"]}

    return app


def main() -> None:
    """Measure all servers in turns, then print the table and the JSON document."""
    parser = argparse.ArgumentParser(prog="benchmarks.echo", description="the cost of POST /echo")
    parser.add_argument("--rounds", type=positive, default=5, help="default: 5")
    parser.add_argument("-n", type=positive, default=2000, help="requests a round; default: 2000")
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    samples: dict[str, Samples] = {}
    with ExitStack() as stack:
        tool = build_tool(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        servers = {name: stack.enter_context(serving(*how)) for name, how in SERVERS.items()}
        for _ in range(arguments.rounds):
            for name, server in servers.items():
                note(samples, name, measure(tool, server, arguments.n))
            with idle_connections(servers[OURS], IDLE):
                note(samples, BESIDE_IDLE, measure(tool, servers[OURS], arguments.n))
    report(arguments.rounds, arguments.n, samples)


def build_tool(directory: Path) -> Path:
    """Build `measure-latency` into `directory`."""
    tool = directory / "measure-latency"
    build = ["go", "build", "-o", str(tool), "./cmd/measure-latency"]
    subprocess.run(build, cwd=ROOT / "clients" / "go", check=True)
    return tool


def note(samples: dict[str, Samples], name: str, figures: dict[str, float]) -> None:
    """Keep one run's figures."""
    for figure, value in figures.items():
        samples.setdefault(name, defaultdict(list))[figure].append(value)


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """So many connections that have had an answer each, and stay open within the block."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            stack.enter_context(closing(connection))
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/echo", b'{"prompt": "idle"}', headers)
            connection.getresponse().read()
        yield


def measure(tool: Path, server: Server, requests: int) -> dict[str, float]:
    """One run of the tool: its figures in microseconds."""
    figures = run_tool(tool, "-port", server.port, "-n", requests)
    return {figure: figures[figure] for figure in FIGURES}


def run_tool(tool: Path, *flags: object) -> Any:
    """What `measure-latency` says in JSON."""
    command = [str(tool), "-json", *map(str, flags)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"measure-latency failed: {ended.stderr}")
    return json.loads(ended.stdout)


def report(rounds: int, requests: int, samples: dict[str, Samples]) -> None:
    """The table for people, then the line for programs."""
    table = [["", *(f"{label} [min-max]" for label in FIGURES.values()), "mean, ours / its"]]
    document: dict[str, Any] = {"benchmark": "echo", "rounds": rounds, "requests": requests}
    document["servers"] = {}
    ours = Summary.of(samples[OURS]["mean_us"])
    for name in samples:
        summaries = {figure: Summary.of(samples[name][figure]) for figure in FIGURES}
        ratio = ours.median / summaries["mean_us"].median
        table.append([name, *map(str, summaries.values()), f"{ratio:.2f}"])
        figures: dict[str, Any] = {name: value.as_json() for name, value in summaries.items()}
        document["servers"][name] = {**figures, "ratio_of_our_mean": round(ratio, 3)}
    print(format_table(table))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
