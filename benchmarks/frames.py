"""Echoes over frames, next to the least that Python can do.

    python -m benchmarks.frames [--rounds N] [-n REQUESTS] [--fake] [--classifier DIRECTORY]

Frames of 3,072 bytes to gemma-server, with HTTP and the demo model's engine up beside them, over
one connection and over 32; and to a loop that blocks for 4 bytes, then for the rest, and writes it
back. Both run at once, and one at a time is asked, by the Go tool `measure-latency -frames`, in
turns.
With a directory that examples/image-classifier/train.py has written, also what a classification
takes beyond the network's own time: the same images in turns by a call in this process, and by raw
frames to examples/image-classifier/serve.py.

Figures are medians over the rounds. The last line of standard output is the result as one JSON
document.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.echo import Samples, build_tool, note, run_tool
from benchmarks.servers import ROOT, end_servers_on_sigterm, positive, serving
from gemma_server.cli.report import Summary, format_table

LOOP, OURS, OURS_32 = "blocking loop", "gemma-server", "gemma-server, 32 connections"
FIGURES = {"mean_us": "mean us", "p50_us": "p50 us", "p99_us": "p99 us", "requests_per_s": "req/s"}
EXAMPLE = ROOT / "examples" / "image-classifier"
IMAGES = 200  # classified in a round


def main() -> None:
    """Measure in rounds, then print the tables and the JSON document."""
    parser = argparse.ArgumentParser(prog="benchmarks.frames", description="echoes over frames")
    parser.add_argument("--rounds", type=positive, default=5, help="default: 5")
    parser.add_argument("-n", type=positive, default=20_000, help="a round; default: 20000")
    parser.add_argument("--fake", action="store_true", help="without jax in the server")
    parser.add_argument("--classifier", type=Path, help="what train.py has written")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop is not None:
        blocking_loop(arguments.loop)
    end_servers_on_sigterm()
    samples: dict[str, Samples] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tool, loop, ours = build_tool(directory), directory / "loop", directory / "ours"
        model = ("--fake",) if arguments.fake else ()
        serve = ("-m", "gemma_server", "serve", "--port=0", f"--frames={ours}", *model)
        stack.enter_context(serving(*serve))
        stack.enter_context(looping(loop))
        for _ in range(arguments.rounds):
            note(samples, LOOP, measure(tool, loop, arguments.n, 1))
            note(samples, OURS, measure(tool, ours, arguments.n, 1))
            note(samples, OURS_32, measure(tool, ours, 2 * arguments.n, 32))
    document = report(samples)
    if arguments.classifier is not None:
        document["classify"] = classify(arguments.classifier.absolute(), arguments.rounds)
    print(json.dumps({"benchmark": "frames", "rounds": arguments.rounds, **document}))


def blocking_loop(path: Path) -> None:
    """A server for one connection at a time; never returns."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            client, _ = listener.accept()
            while head := client.recv(4, socket.MSG_WAITALL):
                body = client.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
                client.sendall(head + body)


@contextmanager
def looping(path: Path) -> Iterator[None]:
    """The loop, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.frames", "--loop", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while not path.exists():
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def measure(tool: Path, path: Path, requests: int, connections: int) -> dict[str, float]:
    """One run of the tool: its figures."""
    figures = run_tool(tool, "-frames", path, "-n", requests, "-connections", connections)
    return {figure: figures[figure] for figure in FIGURES}


def report(samples: dict[str, Samples]) -> dict[str, Any]:
    """Print the table; the same for programs."""
    loop = {figure: Summary.of(samples[LOOP][figure]).median for figure in FIGURES}
    table = [["", *FIGURES.values(), "mean / loop's", "rate / loop's"]]
    lines: dict[str, Any] = {}
    for name, found in samples.items():
        summaries = {figure: Summary.of(values) for figure, values in found.items()}
        ratios = [
            summaries[figure].median / loop[figure] for figure in ("mean_us", "requests_per_s")
        ]
        table.append([name, *map(str, summaries.values()), *(f"{ratio:.2f}" for ratio in ratios)])
        lines[name] = {figure: summary.as_json() for figure, summary in summaries.items()}
        lines[name] |= {"mean_ratio": round(ratios[0], 3), "rate_ratio": round(ratios[1], 3)}
    print(format_table(table))
    return {"ways": lines}


def classify(trained: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of a classification by a call, and over frames; prints them."""
    sys.path.insert(0, str(EXAMPLE))
    from classifier import Classifier

    classifier = Classifier(trained)
    alone, over_frames = [], []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "frames"
        serve = (str(EXAMPLE / "serve.py"), f"--frames={path}", f"--model={trained}", "--port=0")
        with serving(*serve), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            for _ in range(rounds):
                alone.append(timed(classifier))
                over_frames.append(timed(lambda body: ask(client, body)))
    extra = [there - here for here, there in zip(alone, over_frames, strict=True)]
    found = {"call_ms": alone, "frames_ms": over_frames, "extra_ms": extra}
    table = [["one image", "ms"], *([name, str(Summary.of(of))] for name, of in found.items())]
    print(format_table(table))
    return {name: Summary.of(values).as_json() for name, values in found.items()}


def timed(function: Callable[[bytes], bytes]) -> float:
    """Milliseconds that an image takes, the mean of many."""
    images = [os.urandom(3072) for _ in range(IMAGES)]
    took = []
    for image in images:
        began = time.perf_counter()
        function(image)
        took.append(time.perf_counter() - began)
    return statistics.mean(took) * 1000


def ask(client: socket.socket, body: bytes) -> bytes:
    """The answer to a raw frame."""
    client.sendall(struct.pack(">IB", 1 + len(body), 1) + body)
    length: int = struct.unpack(">I", client.recv(4, socket.MSG_WAITALL))[0]
    answer = client.recv(length, socket.MSG_WAITALL)
    assert answer[0] == 1, answer
    return answer[1:]


if __name__ == "__main__":
    main()
