"""How long others wait while a long prompt is read, next to llama.cpp.

    python -m benchmarks.gaps [--rounds N]

Both serve the demo model on the CPU as in `benchmarks.decode`. Four streams write; then a prompt of
1,900 tokens comes. Every round starts both servers anew, and they take turns:

- gap: milliseconds between two pieces of a stream's text, the median before the long prompt comes,
  and the longest while it is read
- read: tokens a second of the long prompt, alone and beside the streams

The last line of standard output is the result as one JSON document.
"""

import json
import random
import statistics
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from benchmarks.servers import Server
from benchmarks.sides import (
    Side,
    both_sides,
    comparison,
    in_rounds,
    parse_rounds,
    random_words,
    stream,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

STREAMS, LONG, TOKENS = 4, 1900, 400
ENDING = ". Once upon a time there was"  # behind it the model does not end the text at once
BEFORE_S = 2.0
ROWS = {
    "gap_median_ms": "gap, median, ms",
    "gap_longest_ms": "gap, longest beside a long prompt, ms",
    "read_alone": "read alone, tok/s",
    "read_beside": "read beside four streams, tok/s",
}


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("gaps", "who waits for a long prompt, and llama.cpp's")
    sides = both_sides(demo_checkpoint(default_cache_dir()))
    samples: dict[str, dict[str, list[float]]] = {side.name: defaultdict(list) for side in sides}

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        for side, server in servers:
            for row, value in measure(side, server, random.Random(number)).items():
                samples[side.name][row].append(value)

    in_rounds(rounds, sides, measure_all)
    table, rows = comparison(ROWS, samples)
    print(table)
    print(json.dumps({"benchmark": "gaps", "rounds": rounds, "rows": rows}))


def measure(side: Side, server: Server, rng: random.Random) -> dict[str, float]:
    """The figures of one side."""
    read_s(side, server, rng)  # warms up
    alone = read_s(side, server, rng)
    prompts = [random_words(12, rng) + ENDING for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, side, server, prompt, TOKENS) for prompt in prompts]
        time.sleep(BEFORE_S)
        came = time.perf_counter()
        beside = read_s(side, server, rng)
        known = came + beside
    moments = [each.result().moments for each in streams]
    pairs = [pair for each in moments for pair in pairwise(each)]
    before = [later - earlier for earlier, later in pairs if later < came]
    during = [later - earlier for earlier, later in pairs if later > came and earlier < known]
    return {
        "gap_median_ms": 1000 * statistics.median(before),
        "gap_longest_ms": 1000 * max(during),
        "read_alone": LONG / alone,
        "read_beside": LONG / beside,
    }


def read_s(side: Side, server: Server, rng: random.Random) -> float:
    """Seconds to the first token of a long prompt."""
    begin = time.perf_counter()
    prompt = random_words(LONG, rng) + ENDING
    return stream(side, server, prompt, 2).moments[0] - begin


if __name__ == "__main__":
    main()
