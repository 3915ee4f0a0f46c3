"""How fast the server generates, next to llama.cpp on the very same GGUF file.

    python -m benchmarks.decode [--rounds N] [--model GGUF] [--torch-python PYTHON]

Both serve the demo model, or the one given, on the CPU, each in processes of its own and with a
thread for every CPU that this process may use (`taskset -c 0,1` in front limits both): gemma-server
as it comes, and llama.cpp from the wheel `xllamacpp` with as many slots of the same context length,
its prompt cache off. Every round starts both anew and sends them the same prompts, in turns: while
one works, the other has nothing to do. The speeds are tokens over wall time as an HTTP client sees
it:

- 1 stream, 8 streams: greedy decoding of 64 tokens a stream, its short prefill included; the
  end-of-text token does not end it
- prefill 512: one prompt of 512 tokens and one token of answer
- ready: from the start of the process to its ready line; gemma-server's compile cache is filled by
  a start before the first round
- peak: resident memory (VmHWM) of the process that holds the model, the mapped file included

The Hugging Face library takes its turns, too, where this Python or `--torch-python` has torch and
transformers: one stream, in float32 and bfloat16, with its growing cache and its static one (see
benchmarks/hugging_face.py).

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import hugging_face
from benchmarks.hugging_face import VARIANTS, Library
from benchmarks.servers import Server, end_servers_on_sigterm, positive, say
from benchmarks.sides import (
    OURS,
    Samples,
    Side,
    both_sides,
    comparison,
    complete,
    in_rounds,
    random_words,
)
from gemma_server.cli.report import Summary, format_table
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

WARMUP_TOKENS = 8
ROWS = {
    "one_stream": "1 stream, tok/s",
    "eight_streams": "8 streams, tok/s in total",
    "prefill_512": "prefill 512, tok/s",
    "ready_s": "ready, s",
    "peak_mb": "peak memory, MB",
}


@dataclass(frozen=True)
class Work:
    """Requests sent at once. A prompt's length counts its `<bos>`."""

    row: str
    streams: int
    prompt_tokens: int
    tokens: int

    @property
    def counted(self) -> int:
        """The tokens that the speed is about: those of the prompt, or those generated."""
        return self.streams * (self.prompt_tokens if self.tokens == 1 else self.tokens)

    @property
    def warmup(self) -> "Work":
        """The same with fewer tokens to generate."""
        return replace(self, tokens=min(self.tokens, WARMUP_TOKENS))


WORKS = (
    Work("one_stream", 1, 8, 64),
    Work("eight_streams", 8, 8, 64),
    Work("prefill_512", 1, 512, 1),
)
OF_LIBRARY = [work for work in WORKS if work.streams == 1]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.decode", description="gemma-server, llama.cpp, transformers"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="GGUF",
        help="default: the demo model; Hugging Face is left out",
    )
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        metavar="PYTHON",
        help="a Python that has " + ", ".join(hugging_face.NEEDS) + "; default: this one",
    )
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    if arguments.model is not None:
        compare(arguments.rounds, arguments.model, None)
        return
    checkpoint = demo_checkpoint(default_cache_dir())
    with ExitStack() as stack:
        library = None
        python = arguments.torch_python
        if lacking := hugging_face.missing(python):
            say(
                f"Hugging Face is left out: {python} has no {', no '.join(lacking)} "
                "(--torch-python names one that has)"
            )
        else:
            say("loading the Hugging Face library")
            library = stack.enter_context(hugging_face.library(python, checkpoint))
        compare(arguments.rounds, checkpoint, library)


def compare(rounds: int, checkpoint: Path, library: Library | None) -> None:
    """Measure `rounds` times, then print the tables and the JSON document."""
    sides = both_sides(checkpoint)
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        measure_round(servers, library, samples, random.Random(number))

    in_rounds(rounds, sides, measure_all)
    report(rounds, samples)


def measure_round(
    servers: Sequence[tuple[Side, Server]],
    library: Library | None,
    samples: Samples,
    rng: random.Random,
) -> None:
    """Let all take turns at each work, and add what was measured."""
    for side, server in servers:
        samples[side.name]["ready_s"].append(server.ready_s)
        for work in WORKS:
            seconds(side, server, work.warmup, rng)
    for work in WORKS:
        seed = rng.random()
        for side, server in servers:
            taken = seconds(side, server, work, random.Random(seed))
            samples[side.name][work.row].append(work.counted / taken)
        if library is not None and work in OF_LIBRARY:
            measure_library(library, work, samples)
    for side, server in servers:
        samples[side.name]["peak_mb"].append(peak_mb(server))


def measure_library(library: Library, work: Work, samples: Samples) -> None:
    """The same work for each variant of the library."""
    for variant in VARIANTS:
        library.seconds(variant, work.prompt_tokens, work.warmup.tokens)
        taken = library.seconds(variant, work.prompt_tokens, work.tokens)
        samples[variant][work.row].append(work.counted / taken)


def seconds(side: Side, server: Server, work: Work, rng: random.Random) -> float:
    """Wall time of the work, each stream in a thread; the prompts follow from `rng`."""
    prompts = [random_words(work.prompt_tokens - 1, rng) for _ in range(work.streams)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(work.streams) as pool:
        for usage in pool.map(lambda prompt: complete(side, server, prompt, work.tokens), prompts):
            done = usage["prompt_tokens"], usage["completion_tokens"]
            if done != (work.prompt_tokens, work.tokens):
                raise RuntimeError(f"{side.name} did not do {work}: prompt and answer had {done}")
    return time.perf_counter() - begin


def peak_mb(server: Server) -> float:
    """The most memory that was resident, of the server's worker or of the server itself."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    status = Path(f"/proc/{children[0] if children else server.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def report(rounds: int, samples: Samples) -> None:
    """The tables for people, then the line for programs."""
    table, rows = comparison(ROWS, samples)
    document: dict[str, Any] = {"benchmark": "decode", "rounds": rounds, "rows": rows}
    print(table)
    if set(VARIANTS) <= set(samples):
        document["hugging_face"] = report_library(samples)
    print(json.dumps(document))


def report_library(samples: Samples) -> dict[str, Any]:
    """A table of the library's variants; the ratio is ours to the library's."""
    table = [["Hugging Face", *(f"{ROWS[work.row]} [min-max], ratio" for work in OF_LIBRARY)]]
    document: dict[str, Any] = {}
    for variant in VARIANTS:
        document[variant], cells = {}, []
        for work in OF_LIBRARY:
            theirs = Summary.of(samples[variant][work.row])
            ratio = Summary.of(samples[OURS][work.row]).median / theirs.median
            cells.append(f"{theirs}, {ratio:.2f}")
            document[variant][work.row] = {**theirs.as_json(), "ratio": round(ratio, 3)}
        table.append([variant, *cells])
    print(f"\n{format_table(table)}")
    return document


if __name__ == "__main__":
    main()
