"""What each part of the way to the model costs, in every way there is to go.

    python -m benchmarks.hop [--rounds N] [-n REQUESTS] [--fake]

One server, with the demo model so that its device is a real one, on a TCP port, a Unix socket and a
socket for frames at once; the Go tool `measure-latency -ladder` sends echoes over all of them, over
connections kept or not, over 1 and 32 of them, with HTTP through the handler alone, the engine's
queue, and an empty dispatch to the device; frames have 3,072 bytes. Bare Flask on gunicorn's
default worker takes its turn in every round, over one kept connection, as a measure of the machine.

Figures are medians over the rounds. The last line of standard output is the result as one JSON
document.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.echo import SERVERS, build_tool, measure, run_tool
from benchmarks.servers import Server, end_servers_on_sigterm, positive, serving
from gemma_server.cli.report import Summary, format_table

FIGURES = {"mean_us": "mean us", "p50_us": "p50 us", "p99_us": "p99 us", "requests_per_s": "req/s"}
BARE = "bare Flask, sync"

Way = tuple[str, str, str, str]  # transport, kept or not, connections, through


def main() -> None:
    """Climb the ladder in rounds, then print the table and the JSON document."""
    parser = argparse.ArgumentParser(prog="benchmarks.hop", description="the cost of each hop")
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument("-n", type=positive, default=500, help="requests a line; default: 500")
    parser.add_argument("--fake", action="store_true", help="without jax: the device costs nothing")
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    ways: dict[Way, defaultdict[str, list[float]]] = {}
    bare: list[float] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tool = build_tool(directory)
        sockets = {"uds": directory / "socket", "frames": directory / "frames"}
        model = ("--fake",) if arguments.fake else ()
        listen = ("--port=0", *(f"--{flag}={path}" for flag, path in sockets.items()))
        serve = ("-m", "gemma_server", "serve", *listen, *model)
        ours = stack.enter_context(serving(*serve))
        theirs = stack.enter_context(serving(*SERVERS[BARE]))
        for _ in range(arguments.rounds):
            bare.append(measure(tool, theirs, arguments.n)["mean_us"])
            for rung in climb(tool, ours, sockets, arguments.n):
                found = ways.setdefault(way(rung), defaultdict(list))
                for figure in FIGURES:
                    found[figure].append(rung[figure])
    report(arguments.rounds, arguments.n, ways, Summary.of(bare))


def climb(
    tool: Path, server: Server, sockets: dict[str, Path], requests: int
) -> list[dict[str, Any]]:
    """One run of the tool: all its lines."""
    listening = [word for flag, path in sockets.items() for word in (f"-{flag}", path)]
    flags = ("-ladder", "-n", requests, "-port", server.port, *listening)
    rungs: list[dict[str, Any]] = run_tool(tool, *flags)
    return rungs


def way(rung: dict[str, Any]) -> Way:
    """How the echoes of this line went."""
    kept = "kept" if rung["keep_alive"] else "new"
    return rung["transport"], kept, str(rung["connections"]), rung["through"]


def report(
    rounds: int, requests: int, ways: dict[Way, defaultdict[str, list[float]]], bare: Summary
) -> None:
    """The table for people, then the line for programs."""
    table = [["over", "connection", "of them", "through", *FIGURES.values(), "mean / bare Flask's"]]
    lines = []
    for (transport, kept, connections, through), found in ways.items():
        summaries = {figure: Summary.of(found[figure]) for figure in FIGURES}
        ratio = summaries["mean_us"].median / bare.median
        figures = [str(summary) for summary in summaries.values()]
        table.append([transport, kept, connections, through, *figures, f"{ratio:.2f}"])
        names: dict[str, Any] = {"transport": transport, "connection": kept}
        names |= {"connections": int(connections), "through": through}
        figures_json = {figure: summary.as_json() for figure, summary in summaries.items()}
        lines.append({**names, **figures_json, "ratio": round(ratio, 3)})
    table.append([BARE, "", "1", "http", str(bare), "", "", "", "1.00"])
    print(format_table(table))
    document = {"benchmark": "hop", "rounds": rounds, "requests": requests}
    print(json.dumps({**document, "bare_mean_us": bare.as_json(), "ways": lines}))


if __name__ == "__main__":
    main()
