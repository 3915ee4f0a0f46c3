"""How fast the server generates, next to llama.cpp on the very same GGUF file.

    python -m benchmarks.decode [--rounds N]

Both serve the demo model on the CPU, each in processes of its own and with a thread for every CPU
that this process may use (`taskset -c 0,1` in front limits both): gemma-server as it comes, and
llama.cpp from the wheel `xllamacpp` with as many slots of the same context length, its prompt
cache off. Every round starts both anew and sends them the same prompts, in turns: while one works,
the other has nothing to do. The speeds are tokens over wall time as an HTTP client sees it:

- 1 stream, 8 streams: greedy decoding of 64 tokens a stream, its short prefill included; the
  end-of-text token does not end it
- prefill 512: one prompt of 512 tokens and one token of answer
- ready: from the start of the process to its ready line; gemma-server's compile cache is filled by
  a start before the first round
- peak: resident memory (VmHWM) of the process that holds the model, the mapped file included

The last line of standard output is the result as one JSON document.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.servers import (
    Server,
    end_servers_on_sigterm,
    positive,
    serving,
)
from gemma_server.figures import Summary, format_table
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

SLOTS, CONTEXT_LENGTH = 8, 2048  # gemma-server's defaults
WARMUP_TOKENS = 8
OURS, THEIRS = "gemma-server", "llama.cpp"
ROWS = {
    "one_stream": "1 stream, tok/s",
    "eight_streams": "8 streams, tok/s in total",
    "prefill_512": "prefill 512, tok/s",
    "ready_s": "ready, s",
    "peak_mb": "peak memory, MB",
}
# Each is one token of Gemma's vocabulary, at the start of a text as well as after a space.
WORDS = (
    "river table green winter paper doctor yellow window summer music garden letter "
    "silver market mother island forest planet engine camera flower history mountain picture "
    "science village weather kitchen library morning"
)

Samples = defaultdict[str, list[float]]


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


@dataclass(frozen=True)
class Side:
    """How to start one of the servers, and how to ask it."""

    name: str
    arguments: tuple[str, ...]
    path: str
    body: Callable[[str, int], dict[str, Any]]  # of a prompt and the tokens to generate


WORKS = (
    Work("one_stream", 1, 8, 64),
    Work("eight_streams", 8, 8, 64),
    Work("prefill_512", 1, 512, 1),
)


def main() -> None:
    """Run the benchmark; with --serve-llama, be llama.cpp's server instead."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.decode", description="gemma-server, llama.cpp"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument("--serve-llama", metavar="GGUF", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_llama:
        serve_llama(arguments.serve_llama)
    else:
        end_servers_on_sigterm()
        compare(arguments.rounds)


def compare(rounds: int) -> None:
    """Measure `rounds` times, then print the table and the JSON document."""
    sides = both_sides(demo_checkpoint(default_cache_dir()))
    with start(sides[0]):
        pass  # fills the compile cache
    samples: dict[str, Samples] = {side.name: defaultdict(list) for side in sides}
    for number in range(rounds):
        measure_round(sides, samples, random.Random(number))
    report(rounds, samples)


def both_sides(checkpoint: Path) -> tuple[Side, Side]:
    """The two servers to compare."""
    return (
        Side(
            OURS,
            ("-m", "gemma_server", "serve", "--port", "0"),
            "/prompt",
            lambda prompt, tokens: {
                "prompt": prompt,
                "sampling_steps": tokens,
                "ignore_eos": True,
            },
        ),
        Side(
            THEIRS,
            ("-m", "benchmarks.decode", "--serve-llama", str(checkpoint)),
            "/v1/completions",
            lambda prompt, tokens: {
                "prompt": prompt,
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            },
        ),
    )


def start(side: Side) -> AbstractContextManager[Server]:
    """The side's server, for a `with` block; jax may not take a GPU that llama.cpp lacks."""
    return serving(*side.arguments, JAX_PLATFORMS="cpu")


def measure_round(
    sides: tuple[Side, Side], samples: dict[str, Samples], rng: random.Random
) -> None:
    """Start both servers, let them take turns at each work, and add what was measured."""
    with ExitStack() as stack:
        servers = [(side, stack.enter_context(start(side))) for side in sides]
        for side, server in servers:
            samples[side.name]["ready_s"].append(server.ready_s)
            for work in WORKS:
                seconds(side, server, replace(work, tokens=min(work.tokens, WARMUP_TOKENS)), rng)
        for work in WORKS:
            seed = rng.random()
            for side, server in servers:
                taken = seconds(side, server, work, random.Random(seed))
                samples[side.name][work.row].append(work.counted / taken)
        for side, server in servers:
            samples[side.name]["peak_mb"].append(peak_mb(server))


def seconds(side: Side, server: Server, work: Work, rng: random.Random) -> float:
    """Wall time of the work, each stream in a thread; the prompts follow from `rng`."""
    words = WORDS.split()
    prompts = [" ".join(rng.choices(words, k=work.prompt_tokens - 1)) for _ in range(work.streams)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(work.streams) as pool:
        for usage in pool.map(lambda prompt: complete(side, server, prompt, work.tokens), prompts):
            done = usage["prompt_tokens"], usage["completion_tokens"]
            if done != (work.prompt_tokens, work.tokens):
                raise RuntimeError(f"{side.name} did not do {work}: prompt and answer had {done}")
    return time.perf_counter() - begin


def complete(side: Side, server: Server, prompt: str, tokens: int) -> dict[str, Any]:
    """Generate, and return the answer's usage."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        body = json.dumps(side.body(prompt, tokens))
        connection.request("POST", side.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{side.name} answered {response.status}: {answer[:500]!r}")
    usage: dict[str, Any] = json.loads(answer)["usage"]
    return usage


def peak_mb(server: Server) -> float:
    """The most memory that was resident, of the server's worker or of the server itself."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    status = Path(f"/proc/{children[0] if children else server.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def report(rounds: int, samples: dict[str, Samples]) -> None:
    """The table for people, then the line for programs."""
    table = [["", f"{OURS} [min-max]", f"{THEIRS} [min-max]", "ratio"]]
    document: dict[str, Any] = {"benchmark": "decode", "rounds": rounds, "rows": {}}
    for row, label in ROWS.items():
        ours, theirs = Summary.of(samples[OURS][row]), Summary.of(samples[THEIRS][row])
        ratio = ours.median / theirs.median
        table.append([label, str(ours), str(theirs), f"{ratio:.2f}"])
        document["rows"][row] = {
            OURS: ours.as_json(),
            THEIRS: theirs.as_json(),
            "ratio": round(ratio, 3),
        }
    print(format_table(table))
    print(json.dumps(document))


def serve_llama(model: str) -> None:
    """Serve `model` with llama.cpp until a signal ends the process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT_LENGTH
    params.fit_params = False  # would change the context length to fit the memory
    params.cache_prompt = params.cache_idle_slots = False
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    server = xllamacpp.Server(params)
    print(f"{THEIRS} ready: {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
