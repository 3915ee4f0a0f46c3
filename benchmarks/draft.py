"""What a draft model gains and costs: Gemma 3 270M drafts for models of six times its work.

    python -m benchmarks.draft [--rounds N]

No larger Gemma comes in a package, so both large models are made of the 270M itself: its
feed-forward layers are given sixteen times the hidden units. In one model nothing comes of the new
units, so that it says what the 270M says, and in the other they say nonsense. The first shows the
most that a draft model can gain, the second what one costs that is never right. Every round starts
each anew, with and without the draft model, and they take turns with the same prompts. The speed is
that of decoding: tokens between the first and the last piece.

- greedy, temperature 1: what a story goes on with, 64 tokens, one stream
- 4 streams: the same at temperature 1, four at a time, in total

The last line of standard output is the result as one JSON document.
"""

import json
import random
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.servers import Server
from benchmarks.sides import (
    STORIES,
    Side,
    beside_each_other,
    both_sides,
    in_rounds,
    parse_rounds,
    speed,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint
from testing.tiny import finish_gguf

TIMES = 16
TOKENS = 64
ROWS = {"greedy": "greedy", "warm": "temperature 1", "four": "4 streams"}


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("draft", "a draft model's gain and cost")
    small = demo_checkpoint(default_cache_dir())
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name in ("like", "unlike"):
            large = Path(folder) / f"{name}.gguf"
            widen(small, large, alike=name == "like")
            plain = replace(both_sides(large)[0], name=f"{name} it, alone")
            flag = ("--draft-checkpoint", str(small))
            drafting = replace(plain, name=f"{name} it, drafts", arguments=plain.arguments + flag)
            sides += [plain, drafting]
        samples: dict[str, dict[str, list[float]]] = {
            side.name: defaultdict(list) for side in sides
        }

        def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
            random.Random(number).shuffle(servers)
            for side, server in servers:
                speed(side, server, "A word", TOKENS)  # warms up
            for side, server in servers:
                for row, value in measure(side, server, number).items():
                    samples[side.name][row].append(value)

        in_rounds(rounds, sides, measure_all)
    table, rows = beside_each_other(ROWS, samples)
    print(table)
    print(json.dumps({"benchmark": "draft", "rounds": rounds, "tok_s": rows}))


def measure(side: Side, server: Server, seed: int) -> dict[str, float]:
    """Tokens a second of each way to ask."""
    greedy = [speed(side, server, story, TOKENS) for story in STORIES]
    warm = [speed(side, server, story, TOKENS, temperature=1, seed=seed) for story in STORIES]
    with ThreadPoolExecutor(len(STORIES)) as pool:
        asked = [
            pool.submit(speed, side, server, story, TOKENS, temperature=1, seed=seed)
            for story in STORIES
        ]
        four = [each.result() for each in asked]
    return {
        "greedy": len(greedy) / sum(1 / each for each in greedy),
        "warm": len(warm) / sum(1 / each for each in warm),
        "four": sum(four),
    }


def widen(source: Path, target: Path, *, alike: bool) -> None:
    """Write the model with `TIMES` as many hidden units, of which the new ones say nothing or, if
    it is not to be alike, what no unit says."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer: Any = gguf.GGUFWriter(target, architecture)
    hidden = f"{architecture}.feed_forward_length"
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        value = value * TIMES if name == hidden else value
        kinds = [*field.types, None]
        writer.add_key_value(name, value, kinds[0], kinds[1])
    for tensor in reader.tensors:
        raw = _widened(tensor.name, np.asarray(tensor.data), alike=alike)
        writer.add_tensor(tensor.name, raw, raw_dtype=tensor.tensor_type)
    finish_gguf(writer)


def _widened(name: str, raw: npt.NDArray[Any], *, alike: bool) -> npt.NDArray[Any]:
    """A tensor's stored rows: blocks of zero bytes are weights of zero."""
    if "ffn_gate." in name or "ffn_up." in name:
        # The nonsense: gates of some units with what others say.
        return np.concatenate([np.roll(raw, 7 * turn * ("up" in name), 0) for turn in range(TIMES)])
    if "ffn_down." in name:
        more = raw if not alike else np.zeros_like(raw)
        return np.concatenate([raw, *[more] * (TIMES - 1)], axis=1)
    return raw


if __name__ == "__main__":
    main()
