"""What it saves to foresee tokens from the text, next to llama.cpp with its own such drafts.

    python -m benchmarks.edit [--rounds N]

Both serve the demo model on the CPU as in `benchmarks.decode`, each twice: with drafts from the
text, and without. Every round starts all of them anew, and they take turns with the same prompts,
one stream at a time. The speed is that of decoding: tokens between the first and the last piece.

- quote: a list is said for the fourth time, 96 tokens
- edit: functions that differ in a word are written out, 96 tokens
- open: what a story goes on with, at temperature 1, 96 tokens; an end-of-text token ends none

The last line of standard output is the result as one JSON document.
"""

import json
from collections import defaultdict
from dataclasses import replace

from benchmarks.servers import Server
from benchmarks.sides import (
    OURS,
    STORIES,
    THEIRS,
    Side,
    beside_each_other,
    both_sides,
    in_rounds,
    parse_rounds,
    speed,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

TOKENS = 96
ROWS = {"quote": "quote, tok/s", "edit": "edit, tok/s", "open": "open, tok/s"}
LIST = "apples, pears, plums, cherries, grapes, figs, dates, lemons, limes, oranges, kiwis, nuts\n"
FUNCTION = '''def {name}(numbers, limit):
    """Return the {name} of all numbers below the limit."""
    chosen = [number for number in numbers if number < limit]
    if not chosen:
        raise ValueError("there is no number below the limit")
    return {name}_of(chosen)


'''


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("edit", "drafts from the text, and llama.cpp's")
    checkpoint = demo_checkpoint(default_cache_dir())
    drafting = both_sides(checkpoint, theirs=("--ngram",))
    ours, theirs = both_sides(checkpoint, ours=("--max-draft", "0"))
    sides = (
        drafting[0],
        replace(ours, name=f"{OURS}, no drafts"),
        drafting[1],
        replace(theirs, name=f"{THEIRS}, no drafts"),
    )
    samples: dict[str, dict[str, list[float]]] = {side.name: defaultdict(list) for side in sides}

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        for side, server in servers:
            speed(side, server, "A word", TOKENS)  # warms up
        for side, server in servers:
            for row, value in measure(side, server, number).items():
                samples[side.name][row].append(value)

    in_rounds(rounds, sides, measure_all)
    table, rows = beside_each_other(ROWS, samples)
    print(table)
    print(json.dumps({"benchmark": "edit", "rounds": rounds, "rows": rows}))


def measure(side: Side, server: Server, seed: int) -> dict[str, float]:
    """Tokens a second of each kind of text."""
    functions = "".join(FUNCTION.format(name=name) for name in ("sum", "mean"))
    begun = FUNCTION.format(name="median").splitlines(keepends=True)[0]
    opened = [speed(side, server, story, TOKENS, temperature=1, seed=seed) for story in STORIES]
    return {
        "quote": speed(side, server, 3 * LIST, TOKENS),
        "edit": speed(side, server, functions + begun, TOKENS),
        "open": len(opened) / sum(1 / each for each in opened),
    }


if __name__ == "__main__":
    main()
