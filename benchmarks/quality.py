"""How near the model's numbers are to those of the Hugging Face library in float32.

    python -m benchmarks.quality [--dtype float32 bfloat16] [--llama]

The demo model reads the texts of testing/goldens on jax's default device, in each type asked for,
outside the engine. The goldens are the library's log-probabilities of the same weights (see
scripts/goldens). Over all scored positions:

- mean KL, max KL: KL(golden || ours) in nats, over the golden's 64 most likely ids and one bucket
  for the others
- log-prob: mean absolute difference of the log-probability of the golden's most likely id
- top-1: the share of positions where it is our most likely id, too

`--llama` adds llama.cpp on the CPU, from the wheel `xllamacpp`, on the very same file: it is asked
for one token after every scored position, and for the 512 most likely ids. A golden id that is
not among them counts as likely as the last of them.

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import os
from typing import Any

import numpy as np

from gemma_server.cli.report import format_table
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint
from testing.quality import LENGTH, Golden, Quality, Scorer, compare, quality, read_goldens

DTYPES = ("float32", "bfloat16", "int8")
LLAMA, LLAMA_TOP = "llama.cpp", 512
LLAMA_DRAWN = 107  # a newline


def main() -> None:
    """Measure each type, then print the table and the JSON document."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description="distance to goldens")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--llama", action="store_true", help="measure llama.cpp, too")
    arguments = parser.parse_args()
    goldens = read_goldens()
    measured = {dtype: measure(dtype, goldens) for dtype in arguments.dtype}
    if arguments.llama:
        measured[LLAMA] = measure_llama(goldens)
    report(measured)


def measure(dtype: str, goldens: list[Golden]) -> Quality:
    """The quality at every scored position of every text."""
    scorer = Scorer(demo_checkpoint(default_cache_dir()), dtype)
    return Quality.joined(
        [compare(golden, scorer.logits(golden.tokens, golden.positions)) for golden in goldens]
    )


def measure_llama(goldens: list[Golden]) -> Quality:
    """The same of llama.cpp; the prompts of a text grow, so that it reads each token once."""
    server = llama_server()
    parts = []
    for golden in goldens:
        for i, position in enumerate(golden.positions):
            top = llama_top(server, golden.tokens[: position + 1])
            last = min(top.values())
            found = [[top.get(token, last) for token in golden.top_ids[i].tolist()]]
            best = np.array([next(iter(top))])
            parts.append(quality(golden, slice(i, i + 1), np.array(found), best))
    return Quality.joined(parts)


def llama_server() -> Any:
    """llama.cpp with the demo model, in this process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(demo_checkpoint(default_cache_dir()))
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.n_parallel, params.n_ctx = 1, LENGTH
    params.fit_params = False  # would change the context length to fit the memory
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


def llama_top(server: Any, tokens: list[int]) -> dict[int, float]:
    """The most likely ids after the tokens and their log-probabilities, the most likely first.

    It reports them as they were before the bias, which makes it draw a newline: of an end of text
    or of half a character it would report none.
    """
    answer = server.handle_completions(
        {
            "prompt": tokens,
            "max_tokens": 1,
            "n_probs": LLAMA_TOP,
            "temperature": 0,
            "logit_bias": [[LLAMA_DRAWN, 1000]],
        }
    )
    [first] = answer["choices"][0]["logprobs"]["content"]
    return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}


def report(measured: dict[str, Quality]) -> None:
    """The table for people, then the line for programs."""
    table = [["", "mean KL", "max KL", "log-prob", "top-1"]]
    rows = {}
    for dtype, found in measured.items():
        rows[dtype] = {
            "mean_kl": float(found.kl.mean()),
            "max_kl": float(found.kl.max()),
            "mean_top_difference": float(found.top_difference.mean()),
            "top_agreement": float(found.top_agrees.mean()),
        }
        mean, most, difference, agreement = rows[dtype].values()
        table.append([dtype, f"{mean:.1e}", f"{most:.1e}", f"{difference:.1e}", f"{agreement:.2%}"])
    positions = len(next(iter(measured.values())).kl)
    print(format_table(table))
    print(json.dumps({"benchmark": "quality", "positions": positions, "rows": rows}))


if __name__ == "__main__":
    main()
