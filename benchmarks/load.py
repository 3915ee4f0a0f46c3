"""How the server behaves under load, next to llama.cpp: requests come whether it is ready or not.

    python -m benchmarks.load [--rounds N] [--seconds S] [--fractions F ...]

Both servers run as in benchmarks/decode.py, and answer by streaming over HTTP. Requests arrive at
random moments (a Poisson process) at several rates, for `--seconds` each, and each is sent on
time, however many are still unanswered. Prompts are random words of 16 to 512 tokens, answers 8 to
128 tokens long, both spread evenly over the logarithm. Every round starts both servers anew, and at
each rate they take turns with the very same arrivals.

A rate is a fraction of the capacity of the slower one, measured before the first round: the
requests of the same mix that it answers per second when as many as it has slots are always waiting.

- first token: from the moment of arrival to the first piece of text
- gap: between two pieces of text, which most often are one token each
- whole: from the moment of arrival to the end of the answer
- answered: requests and tokens a second, until the last answer has ended

p50 and p99 are over a round's requests at one rate; a p99 of few requests is their longest.
The ratio is ours to theirs in the same round; of a time, below 1 is better.

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.llama import SLOTS
from benchmarks.servers import Server, end_servers_on_sigterm, positive, say
from benchmarks.sides import OURS, THEIRS, Side, both_sides, random_words, start, stream
from gemma_server.cli.report import Summary, format_table
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

PROMPT_TOKENS, ANSWER_TOKENS = (16, 512), (8, 128)
# Behind random words alone the model may well end the text, and an end is no piece of text.
ENDING = ". Once upon a time there was"
ENDING_TOKENS = 7
CAPACITY_REQUESTS = 3 * SLOTS
FIGURES = {
    "first_token_p50_s": "first token, p50, s",
    "first_token_p99_s": "first token, p99, s",
    "gap_p50_s": "gap, p50, s",
    "gap_p99_s": "gap, p99, s",
    "whole_p50_s": "whole, p50, s",
    "whole_p99_s": "whole, p99, s",
    "answered_per_s": "answered, requests/s",
    "tokens_per_s": "answered, tokens/s",
}

Samples = dict[str, list[float]]  # for each figure, one of each round


@dataclass(frozen=True)
class Arrival:
    """A request that is to be sent, so many seconds after the first could have been."""

    at_s: float
    prompt_tokens: int
    tokens: int
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What became of an arrival, in seconds; `ended` is since the first could have come."""

    tokens: int
    first: float
    gaps: list[float]
    whole: float
    ended: float


@dataclass
class Rate:
    """Arrivals a second, and what was measured at them."""

    per_s: float
    requests: list[int] = field(default_factory=list)  # of each round
    samples: dict[str, Samples] = field(default_factory=dict)  # of each side

    def add(self, side: str, answers: Sequence[Answer]) -> None:
        """The answers of one round."""
        samples = self.samples.setdefault(side, defaultdict(list))
        for figure, value in summed_up(answers).items():
            samples[figure].append(value)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.load", description="gemma-server, llama.cpp")
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument(
        "--seconds", type=positive, default=120, help="of arrivals at each rate; default: 120"
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.3, 0.6, 0.9],
        help="of capacity; default: 0.3 0.6 0.9",
    )
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    compare(arguments.rounds, arguments.seconds, arguments.fractions)


def compare(rounds: int, seconds: int, fractions: Sequence[float]) -> None:
    """Measure capacity, then every rate `rounds` times; print the tables and the JSON document."""
    sides = both_sides(demo_checkpoint(default_cache_dir()))
    capacity = {side.name: measure_capacity(side) for side in sides}
    rates = {fraction: Rate(fraction * min(capacity.values())) for fraction in fractions}
    for number in range(rounds):
        with ExitStack() as stack:
            servers = [(side, stack.enter_context(start(side))) for side in sides]
            for side, server in servers:
                answer_all(side, server, mix(SLOTS, random.Random(number)))  # warms up
            for fraction, rate in rates.items():
                arrivals = poisson(rate.per_s, seconds, random.Random(f"{number} {fraction}"))
                rate.requests.append(len(arrivals))
                for side, server in servers:
                    say(f"round {number + 1} of {rounds}: {fraction:.0%} load on {side.name}")
                    rate.add(side.name, answer_all(side, server, arrivals))
    report(rounds, seconds, capacity, rates)


def measure_capacity(side: Side) -> float:
    """Requests a second when there are always as many as slots."""
    say(f"measuring the capacity of {side.name}")
    with start(side) as server:
        answer_all(side, server, mix(SLOTS, random.Random("warm up")))
        arrivals = mix(CAPACITY_REQUESTS, random.Random("capacity"))
        answers = answer_all(side, server, arrivals, at_once=SLOTS)
    return len(answers) / max(answer.ended for answer in answers)


def mix(count: int, rng: random.Random, moments: Sequence[float] | None = None) -> list[Arrival]:
    """So many requests, which arrive at these moments or all at once."""
    arrivals = []
    for at_s in moments or [0.0] * count:
        prompt_tokens, tokens = between(*PROMPT_TOKENS, rng), between(*ANSWER_TOKENS, rng)
        words = random_words(prompt_tokens - 1 - ENDING_TOKENS, rng)  # 1 is <bos>
        arrivals.append(Arrival(at_s, prompt_tokens, tokens, words + ENDING))
    return arrivals


def poisson(rate: float, seconds: float, rng: random.Random) -> list[Arrival]:
    """Requests at random moments, `rate` of them a second on average; at least one."""
    moments = [rng.expovariate(rate)]
    while (following := moments[-1] + rng.expovariate(rate)) < seconds:
        moments.append(following)
    return mix(len(moments), rng, moments)


def between(least: int, most: int, rng: random.Random) -> int:
    """A number from `least` to `most`, even over its logarithm."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def answer_all(
    side: Side, server: Server, arrivals: Sequence[Arrival], at_once: int | None = None
) -> list[Answer]:
    """Send each request at its moment, but at most `at_once` together, and wait for all answers."""
    began = time.perf_counter()

    def answer(arrival: Arrival) -> Answer:
        arrived = began + arrival.at_s
        time.sleep(max(0.0, arrived - time.perf_counter()))
        got = stream(side, server, arrival.prompt, arrival.tokens)
        done = got.usage["prompt_tokens"], got.usage["completion_tokens"]
        if done != (arrival.prompt_tokens, arrival.tokens):
            raise RuntimeError(f"{side.name} did not do {arrival}: prompt and answer had {done}")
        gaps = [after - before for before, after in pairwise(got.moments)]
        first, whole = got.moments[0] - arrived, got.ended - arrived
        return Answer(arrival.tokens, first, gaps, whole, got.ended - began)

    with ThreadPoolExecutor(at_once or len(arrivals)) as pool:
        return list(pool.map(answer, arrivals))


def summed_up(answers: Sequence[Answer]) -> dict[str, float]:
    """The figures of one round at one rate."""
    parts = {
        "first_token": [answer.first for answer in answers],
        "gap": [gap for answer in answers for gap in answer.gaps],
        "whole": [answer.whole for answer in answers],
    }
    figures = {
        f"{name}_p{percent}_s": percentile(samples, percent)
        for name, samples in parts.items()
        for percent in (50, 99)
    }
    ended = max(answer.ended for answer in answers)
    figures["answered_per_s"] = len(answers) / ended
    figures["tokens_per_s"] = sum(answer.tokens for answer in answers) / ended
    return figures


def percentile(samples: Sequence[float], percent: int) -> float:
    """The least sample that so many percent do not exceed."""
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


def report(rounds: int, seconds: int, capacity: dict[str, float], rates: dict[float, Rate]) -> None:
    """The tables for people, then the line for programs."""
    document: dict[str, Any] = {
        "benchmark": "load",
        "rounds": rounds,
        "seconds": seconds,
        "capacity_per_s": {name: round(rate, 3) for name, rate in capacity.items()},
        "rates": {},
    }
    print("capacity, requests/s: " + ", ".join(f"{n} {rate:.2f}" for n, rate in capacity.items()))
    for fraction, rate in rates.items():
        document["rates"][str(fraction)] = report_rate(rate)
    print(json.dumps(document))


def report_rate(rate: Rate) -> dict[str, Any]:
    """The table of one rate, and its part of the document."""
    table = [[f"{rate.per_s:.2f} requests/s, {sum(rate.requests)} in all"]]
    table[0] += [f"{name} [min-max]" for name in (OURS, THEIRS, "ratio")]
    rows = {}
    for figure, label in FIGURES.items():
        ours, theirs = (rate.samples[name][figure] for name in (OURS, THEIRS))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        row = {OURS: Summary.of(ours), THEIRS: Summary.of(theirs), "ratio": Summary.of(ratios)}
        table.append([label, *(f"{summary:.3g}" for summary in row.values())])
        rows[figure] = {name: summary.as_json() for name, summary in row.items()}
    print(f"\n{format_table(table)}")
    return {"per_s": round(rate.per_s, 3), "requests": rate.requests, "rows": rows}


if __name__ == "__main__":
    main()
