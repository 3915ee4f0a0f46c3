"""What it costs to keep answers to a JSON schema, next to llama.cpp with the same schema and file.

    python -m benchmarks.structured [--rounds N]

Both serve the demo model on the CPU as in `benchmarks.decode`. Every round starts both anew, and
they take turns:

- free: greedy text of 64 tokens; the end-of-text token does not end it
- list: 64 tokens of a JSON list of objects that is longer than that
- person: a short JSON object that ends by itself

Rows of the table are one stream, and eight at once: the speed of free text, that of the list as a
share of it, and answers a second of the person. The tokens of an answer count as each server says.

The last line of standard output is the result as one JSON document.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.servers import Server
from benchmarks.sides import (
    OURS,
    THEIRS,
    Json,
    Samples,
    Side,
    both_sides,
    comparison,
    complete,
    in_rounds,
    parse_rounds,
    random_words,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

TOKENS, STREAMS = 64, (1, 8)
_ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
SCHEMAS: Mapping[str, Json] = {
    "list": {"type": "array", "items": _ITEM, "minItems": 50},
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"type": "string", "enum": ["adult", "child"]},
            "married": {"type": "boolean"},
            "city": {"type": "string", "maxLength": 12},
        },
        "required": ["name", "kind", "married", "city"],
        "additionalProperties": False,
    },
}
_FIELD = {OURS: "response_schema", THEIRS: "json_schema"}


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("structured", "answers of a schema, and llama.cpp's")
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        for side, server in servers:
            for kind in ("free", *SCHEMAS):
                measure(side, server, kind, 1, random.Random(0))  # warms up
        for streams in STREAMS:
            for side, server in servers:
                add(samples[side.name], side, server, streams, number)

    in_rounds(rounds, both_sides(demo_checkpoint(default_cache_dir())), measure_all)
    report(rounds, samples)


def add(
    samples: dict[str, list[float]], side: Side, server: Server, streams: int, seed: int
) -> None:
    """Measure one side with so many streams."""
    free, _ = measure(side, server, "free", streams, random.Random(seed))
    bound, _ = measure(side, server, "list", streams, random.Random(seed))
    _, answers = measure(side, server, "person", streams, random.Random(seed))
    samples[f"free_{streams}"].append(free)
    samples[f"share_{streams}"].append(bound / free)
    samples[f"answers_{streams}"].append(answers)


def measure(
    side: Side, server: Server, kind: str, streams: int, rng: random.Random
) -> tuple[float, float]:
    """Tokens and answers a second."""
    asked = side if kind == "free" else constrained(side, SCHEMAS[kind])
    prompts = [f"{random_words(6, rng)} as JSON: " for _ in range(streams)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        usages = list(pool.map(lambda prompt: complete(asked, server, prompt, TOKENS), prompts))
    seconds = time.perf_counter() - begin
    return sum(usage["completion_tokens"] for usage in usages) / seconds, streams / seconds


def constrained(side: Side, schema: Json) -> Side:
    """The same server, asked for answers of the schema."""

    def body(prompt: str, tokens: int) -> Json:
        fields = side.body(prompt, tokens)
        del fields["ignore_eos"]
        return {**fields, _FIELD[side.name]: schema}

    return replace(side, body=body)


def report(rounds: int, samples: Samples) -> None:
    """The table for people, then the line for programs."""
    labels = {
        name: label
        for streams in STREAMS
        for name, label in (
            (f"free_{streams}", f"{streams} free, tok/s"),
            (f"share_{streams}", f"{streams} constrained, of free"),
            (f"answers_{streams}", f"{streams} short answers, 1/s"),
        )
    }
    table, rows = comparison(labels, samples)
    print(table)
    print(json.dumps({"benchmark": "structured", "rounds": rounds, "rows": rows}))


if __name__ == "__main__":
    main()
