"""What it saves not to read a text twice, next to llama.cpp with its own caches of prompts.

    python -m benchmarks.chat [--rounds N]

Both serve the demo model on the CPU as in `benchmarks.decode`, but llama.cpp with its caches; a
third column is gemma-server told to read every prompt whole (`cache_prompt` false). Every round
starts both servers anew. The columns take turns:

- again: milliseconds to the first token of a prompt of 1,500 tokens and some more, of which the
  1,500 were read before; and how much sooner that is than when they are new
- chat: seconds for a conversation of ten turns, each of 40 new tokens and an answer of 32; and how
  many tokens were read for each that is in it
- shared: answers a second of 8 clients, each with four questions of 16 tokens and answers of 8,
  behind 500 tokens that are always the same

The last line of standard output is the result as one JSON document.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.servers import Server
from benchmarks.sides import (
    OURS,
    Json,
    Side,
    beside_each_other,
    both_sides,
    complete,
    in_rounds,
    parse_rounds,
    random_words,
    stream,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

READS_ALL = f"{OURS}, no reuse"
ROWS = {
    "again_ms": "again, first token, ms",
    "again_sooner": "again, times sooner than new",
    "chat_s": "chat of ten turns, s",
    "chat_read": "chat, read for each token in it",
    "shared": "shared, answers/s",
}
LONG, CLIENTS, QUESTIONS = 1500, 8, 4

Row = dict[str, float]


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("chat", "texts that begin like others, and llama.cpp's")
    ours, theirs = both_sides(demo_checkpoint(default_cache_dir()), theirs=("--cache",))
    columns = (ours, replace(ours, name=READS_ALL, body=_reading_all(ours)), theirs)
    samples: dict[str, dict[str, list[float]]] = {
        column.name: defaultdict(list) for column in columns
    }

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        of_side = {side.name: server for side, server in servers}
        for measure in (again, chat, shared):
            for column in columns:
                server = of_side.get(column.name, of_side[OURS])
                found = measure(column, server, random.Random(f"{number} {column.name}"))
                for row, value in found.items():
                    samples[column.name][row].append(value)

    in_rounds(rounds, (ours, theirs), measure_all)
    table, rows = beside_each_other(ROWS, samples)
    print(table)
    print(json.dumps({"benchmark": "chat", "rounds": rounds, "rows": rows}))


def again(side: Side, server: Server, rng: random.Random) -> Row:
    """The first token behind a long text, when that is new and when it is not."""
    text = random_words(LONG, rng)
    new, known = (first_token_s(side, server, f"{text} {random_words(8, rng)}") for _ in range(2))
    return {"again_ms": 1000 * known, "again_sooner": new / known}


def first_token_s(side: Side, server: Server, prompt: str) -> float:
    """Seconds to the first piece of text."""
    begin = time.perf_counter()
    return stream(side, server, prompt, 2).moments[0] - begin


def chat(side: Side, server: Server, rng: random.Random) -> Row:
    """A conversation, each of whose prompts is all that was said."""
    said, read, begin = "", 0, time.perf_counter()
    for _ in range(10):
        said += f" {random_words(40, rng)}"
        text, usage = answer(side, server, said, 32)
        said += text
        read += usage["prompt_tokens"] - cached(usage)
    seconds = time.perf_counter() - begin
    return {"chat_s": seconds, "chat_read": read / usage["prompt_tokens"]}


def answer(side: Side, server: Server, prompt: str, tokens: int) -> tuple[str, Json]:
    """The text of an answer, and its usage."""
    pieces: list[str] = []

    def piece(event: Json) -> str:
        pieces.append(side.piece(event))
        return pieces[-1]

    usage = stream(replace(side, piece=piece), server, prompt, tokens).usage
    return "".join(pieces), usage


def cached(usage: Json) -> int:
    """How many tokens of the prompt did not have to be read."""
    details = usage.get("prompt_tokens_details") or usage
    return int(details.get("cached_tokens", 0))


def shared(side: Side, server: Server, rng: random.Random) -> Row:
    """Many short answers behind one long beginning."""
    beginning = random_words(500, rng)
    prompts = [f"{beginning} {random_words(16, rng)}" for _ in range(CLIENTS * QUESTIONS)]
    complete(side, server, beginning, 1)
    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda prompt: complete(side, server, prompt, 8), prompts):
            pass
    return {"shared": len(prompts) / (time.perf_counter() - begin)}


def _reading_all(side: Side) -> Callable[[str, int], Json]:
    return lambda prompt, tokens: {**side.body(prompt, tokens), "cache_prompt": False}


if __name__ == "__main__":
    main()
