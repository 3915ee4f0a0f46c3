"""gemma-server and llama.cpp: how to start each on the same GGUF file, and how to ask it."""

import argparse
import http.client
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import llama
from benchmarks.servers import Server, end_servers_on_sigterm, positive, say, serving
from gemma_server.cli.report import Summary, format_table

OURS, THEIRS = "gemma-server", llama.NAME
# Each is one token of Gemma's vocabulary, at the start of a text as well as after a space.
WORDS = (
    "river table green winter paper doctor yellow window summer music garden letter "
    "silver market mother island forest planet engine camera flower history mountain picture "
    "science village weather kitchen library morning"
)
ANSWER_TIMEOUT_S = 600.0

Json = dict[str, Any]
Samples = Mapping[str, Mapping[str, list[float]]]  # of each side, for each row


# Beginnings behind which a model tells something new.
STORIES = (
    "Once upon a time there was a fisherman who",
    "The letter began without a greeting. It said that",
    "On the last day of winter the old clock",
    "Nobody in the village knew why the lamp",
)


@dataclass(frozen=True)
class Side:
    """How to start one of the servers, and how to ask it."""

    name: str
    arguments: tuple[str, ...]
    path: str
    body: Callable[[str, int], Json]  # of a prompt and the tokens to generate
    streaming: Json  # what the body has besides, to get an event for each piece of text
    piece: Callable[[Json], str]  # the text in such an event, empty in one without


@dataclass(frozen=True)
class Streamed:
    """When the pieces of an answer came, in seconds of the performance counter."""

    moments: list[float]
    ended: float
    usage: Json


def both_sides(
    checkpoint: Path, ours: tuple[str, ...] = (), theirs: tuple[str, ...] = ()
) -> tuple[Side, Side]:
    """The two servers to compare, with further options. An end-of-text token ends no answer."""
    serve = ("-m", "gemma_server", "serve", "--port", "0", "--model-checkpoint", str(checkpoint))
    return (
        Side(
            OURS,
            (*serve, *ours),
            "/prompt",
            lambda prompt, tokens: {
                "prompt": prompt,
                "sampling_steps": tokens,
                "ignore_eos": True,
            },
            {"stream": True},
            lambda event: str(event.get("response", "")),
        ),
        Side(
            THEIRS,
            ("-m", "benchmarks.llama", str(checkpoint), *theirs),
            "/v1/completions",
            lambda prompt, tokens: {
                "prompt": prompt,
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            },
            {"stream": True, "stream_options": {"include_usage": True}},
            lambda event: str(event["choices"][0]["text"] if event["choices"] else ""),
        ),
    )


def start(side: Side) -> AbstractContextManager[Server]:
    """The side's server, for a `with` block; jax may not take a GPU that llama.cpp lacks."""
    return serving(*side.arguments, JAX_PLATFORMS="cpu")


def parse_rounds(benchmark: str, description: str) -> int:
    """What `--rounds` says, of a benchmark without other options. SIGTERM ends its servers."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.{benchmark}", description=description)
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    rounds: int = parser.parse_args().rounds
    end_servers_on_sigterm()
    return rounds


def in_rounds(
    rounds: int,
    sides: Sequence[Side],
    measure: Callable[[int, list[tuple[Side, Server]]], None],
) -> None:
    """Start all sides anew in each round, and measure them: the round's number, and the servers.

    The first side is ours: a start before the first round fills its compile cache.
    """
    with start(sides[0]):
        pass
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        with ExitStack() as stack:
            measure(number, [(side, stack.enter_context(start(side))) for side in sides])


def random_words(tokens: int, rng: random.Random) -> str:
    """A text of so many tokens, which nobody can have in a cache."""
    return " ".join(rng.choices(WORDS.split(), k=tokens))


def complete(side: Side, server: Server, prompt: str, tokens: int) -> Json:
    """Generate, and return the answer's usage."""
    with _asked(side, server, side.body(prompt, tokens)) as response:
        usage: Json = json.loads(response.read())["usage"]
    return usage


def stream(side: Side, server: Server, prompt: str, tokens: int) -> Streamed:
    """Generate, and note when each piece of text comes.

    Raises:
        RuntimeError: the server refused, or its answer ended early.
    """
    moments: list[float] = []
    usage: Json | None = None
    with _asked(side, server, side.body(prompt, tokens) | side.streaming) as response:
        for event in _events(response):
            if side.piece(event):
                moments.append(time.perf_counter())
            usage = event.get("usage") or usage
        ended = time.perf_counter()
    if usage is None or not moments:
        raise RuntimeError(f"{side.name} ended an answer early")
    return Streamed(moments, ended, usage)


def speed(side: Side, server: Server, prompt: str, tokens: int, **how: float) -> float:
    """Tokens a second behind the first piece of text; `how` are more fields of the body."""

    def body(prompt: str, tokens: int) -> Json:
        return {**side.body(prompt, tokens), **how}

    moments = stream(replace(side, body=body), server, prompt, tokens).moments
    return (tokens - 1) / (moments[-1] - moments[0])


@contextmanager
def _asked(side: Side, server: Server, body: Json) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json"}
        try:
            connection.request("POST", side.path, json.dumps(body), headers)
            response = connection.getresponse()
        except OSError as error:
            said = "".join(server.last_words)
            raise RuntimeError(
                f"{side.name}, port {server.port}: {error}; it said:\n{said}"
            ) from error
        if response.status != 200:
            answer = response.read()[:500]
            raise RuntimeError(f"{side.name} answered {response.status}: {answer!r}")
        yield response
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Json]:
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            event: Json = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(f"a stream ended with {event['error']}")
            yield event


def beside_each_other(labels: Mapping[str, str], samples: Samples) -> tuple[str, Json]:
    """The table for people and the rows for programs, with a column for each side."""
    table = [["", *(f"{side} [min-max]" for side in samples)]]
    rows: Json = {}
    for row, label in labels.items():
        found = {side: Summary.of(values[row]) for side, values in samples.items()}
        table.append([label, *map(str, found.values())])
        rows[row] = {side: summary.as_json() for side, summary in found.items()}
    return format_table(table), rows


def comparison(labels: Mapping[str, str], samples: Samples) -> tuple[str, Json]:
    """The table for people and the rows for programs; the ratio is ours to theirs."""
    table = [["", f"{OURS} [min-max]", f"{THEIRS} [min-max]", "ratio"]]
    rows: Json = {}
    for row, label in labels.items():
        ours, theirs = Summary.of(samples[OURS][row]), Summary.of(samples[THEIRS][row])
        ratio = ours.median / theirs.median
        table.append([label, str(ours), str(theirs), f"{ratio:.2f}"])
        rows[row] = {OURS: ours.as_json(), THEIRS: theirs.as_json(), "ratio": round(ratio, 3)}
    return format_table(table), rows
