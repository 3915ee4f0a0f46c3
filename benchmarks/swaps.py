"""What it costs those who are served that a version of the model takes over from another.

    python -m benchmarks.swaps [--swaps N] [--no-streams]

Serves copies of the demo model as versions on the CPU, as in `benchmarks.decode`. Four streams
write, one after the other, while each next version is published:

- swap: seconds from publishing until the new version takes requests, and until the old one is freed
- gap: milliseconds between two pieces of a stream's text, the median, the 99th percentile and the
  longest: in quiet times, while a version loads, and while the old one ends what it has begun
- memory: the worker's resident MB, the MB that are booked for its versions, threads, open files and
  programs compiled, after the first swap and after the last

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import Server, end_servers_on_sigterm, positive, say, serving, worker_of
from benchmarks.sides import Side, both_sides, random_words, stream
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

NAME, STREAMS, TOKENS = "swaps", 4, 60
ENDING = ". Once upon a time there was"  # behind it the model does not end the text at once
QUIET_S, LOOK_S, SWAP_S = 3.0, 0.05, 300.0


class Held(NamedTuple):
    """What the worker holds."""

    resident_mb: float
    booked_mb: float
    threads: int
    files: int
    compilations: float


@dataclass(frozen=True)
class Swap:
    """The moments of one swap on the performance counter, and what was held after it."""

    published: float
    available: float
    freed: float
    held: Held


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.swaps", description="versions under load")
    parser.add_argument("--swaps", type=positive, default=20, help="default: 20")
    parser.add_argument("--no-streams", action="store_true", help="nobody asks meanwhile")
    options = parser.parse_args()
    end_servers_on_sigterm()
    checkpoint = demo_checkpoint(default_cache_dir())
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
        base = Path(scratch) / NAME
        base.mkdir()
        publish(base, 1, checkpoint)
        flags = ("--model-base-path", str(base), "--model-poll-seconds", "0.2", "--port", "0")
        with serving("-m", "gemma_server", "serve", *flags) as server:
            side = both_sides(checkpoint)[0]
            streams = 0 if options.no_streams else STREAMS
            with streaming(side, server, streams) as moments:
                swaps = [
                    swap(server, base, number, checkpoint) for number in range(2, options.swaps + 2)
                ]
    report(swaps, moments)


def publish(base: Path, number: int, checkpoint: Path) -> None:
    """The checkpoint as the version of this number, at once."""
    aside = base / f".{number}"
    aside.mkdir()
    os.link(checkpoint, aside / "model.gguf")
    aside.rename(base / str(number))


def swap(server: Server, base: Path, number: int, checkpoint: Path) -> Swap:
    """Publish a version, and wait until it has taken the place of the one before."""
    time.sleep(QUIET_S)
    published = time.perf_counter()
    publish(base, number, checkpoint)
    available = when(server, number, "AVAILABLE")
    freed = when(server, number - 1, "END")
    time.sleep(LOOK_S)
    held = held_by(server)
    say(f"version {number}: {available - published:.1f} s, {held.resident_mb:.0f} MB")
    return Swap(published, available, freed, held)


def when(server: Server, number: int, state: str) -> float:
    """The moment when a version has come to this state.

    Raises:
        TimeoutError: it does not.
    """
    url = f"http://127.0.0.1:{server.port}/v1/models/{NAME}"
    until = time.perf_counter() + SWAP_S
    while time.perf_counter() < until:
        with urllib.request.urlopen(url) as response:
            versions = json.loads(response.read())["model_version_status"]
        if (str(number), state) in [(each["version"], each["state"]) for each in versions]:
            return time.perf_counter()
        time.sleep(LOOK_S)
    raise TimeoutError(f"version {number} is not {state} after {SWAP_S:.0f} s")


@contextmanager
def streaming(side: Side, server: Server, clients: int) -> Iterator[list[list[float]]]:
    """Streams one after the other for each client; yields the moments of all pieces."""
    found: list[list[float]] = []
    ends = threading.Event()

    def client(number: int) -> None:
        rng = random.Random(number)
        while not ends.is_set():
            prompt = random_words(12, rng) + ENDING
            found.append(stream(side, server, prompt, TOKENS).moments)

    with ThreadPoolExecutor(max(1, clients)) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield found
        finally:
            ends.set()
    for each in running:
        each.result()


def held_by(server: Server) -> Held:
    """What the worker holds now."""
    pid = worker_of(server.pid)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    resident_kb, threads = told["VmRSS"].split()[0], told["Threads"]
    booked, compilations = (
        sum_of(server, name) for name in ("gemma_model_memory_bytes", "gemma_compilations_total")
    )
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Held(int(resident_kb) / 1000, booked / 1e6, int(threads), files, compilations)


def sum_of(server: Server, metric: str) -> float:
    """A metric, over all versions."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{metric}{{"))


def report(swaps: list[Swap], streams: list[list[float]]) -> None:
    """Print the figures."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for moments in streams:
        for earlier, later in pairwise(moments):
            gaps[_when(swaps, earlier, later)].append(1000 * (later - earlier))
    rows: dict[str, float] = {
        "available_s": statistics.median(each.available - each.published for each in swaps),
        "freed_s": statistics.median(each.freed - each.published for each in swaps),
    }
    for when_, found in gaps.items():
        rows |= {
            f"{when_}_median_ms": statistics.median(found),
            f"{when_}_p99_ms": statistics.quantiles(found, n=100)[-1],
            f"{when_}_longest_ms": max(found),
        }
    first, last = swaps[0].held, swaps[-1].held
    for name in Held._fields:
        rows |= {f"{name}_first": getattr(first, name), f"{name}_last": getattr(last, name)}
    for name, value in rows.items():
        print(f"{name:24} {value:10.1f}")
    print(json.dumps({"benchmark": "swaps", "swaps": len(swaps), "rows": rows}))


def _when(swaps: list[Swap], earlier: float, later: float) -> str:
    """What went on at some moment of a gap."""
    if any(each.published < later and earlier < each.available for each in swaps):
        return "loading"
    if any(each.available < later and earlier < each.freed for each in swaps):
        return "draining"
    return "quiet"


if __name__ == "__main__":
    main()
