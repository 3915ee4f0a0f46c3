"""`gemma-server bench`: how fast a model generates, through its engine alone, without HTTP.

Prompts are random ids, and every request runs to its full length. A round measures

- first token: from submission to the first token, for a prompt of 8 tokens in an idle engine
- decode: 64 tokens for each of 1, 2, 4, 8 and 16 streams. A step's time is from one result to the
  next, of steps with all streams and without a prompt; tokens a second are those of these steps
- host: how long the device waited for the host in each such step: from one result until the next
  step was dispatched. An upper bound, as the device may begin before that call returns
- prefill: prompt tokens over the time from getting a slot to the first token
- memory: how fast jax, with all cores that it uses, sums the rows of a matrix of 512 MiB: the best
  of 5 times

A step has to read all weights once, and the filled part of each row's cache. These bytes over the
step's time, compared with the memory's speed, are the share that the step attains.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import click

from gemma_server.cli import exits
from gemma_server.cli.loading import load
from gemma_server.cli.options import NOT_WITHOUT_SERVER, read_settings, settings_options
from gemma_server.cli.report import Summary, format_table
from gemma_server.engine.request import Failed, Handle, Request, Token
from gemma_server.engine.step_log import Step, StepLog
from gemma_server.errors import GemmaServerError, UsageError
from gemma_server.serving.model import GenerativeModel

SLOTS = 16
STREAMS = (1, 2, 4, 8, SLOTS)
PREFILLS = (128, 512, 1500)
PROMPT_TOKENS, TOKENS = 8, 64
FIRST_TOKENS = 5  # samples a round
READ_BYTES, READS = 512 << 20, 5

Say = Callable[[str], None]
Report = dict[str, Any]


@dataclass
class Decoding:
    """The measurements of decoding with one number of streams."""

    step_s: list[float] = field(default_factory=list)
    host_s: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)  # one a round, of all streams

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second that the steps had to read."""
        return sum(self.step_bytes) / sum(self.step_s)


class Bench:
    """Measures one model, round after round, and keeps the samples.

    Raises:
        UsageError: the context has no room for the tokens that a stream decodes.
    """

    def __init__(self, loaded: GenerativeModel, log: StepLog) -> None:
        self._loaded, self._engine, self._log = loaded, loaded.engine, log
        self._rng = random.Random(0)
        self._rounds = 0
        self._first_token_s: list[float] = []
        self._decoding = {streams: Decoding() for streams in STREAMS}
        self._prefill_tokens_per_s: dict[int, list[float]] = defaultdict(list)
        self._read_bytes_per_s: list[float] = []
        if self._engine.context_length < PROMPT_TOKENS + TOKENS:
            raise UsageError(f"bench needs a context of {PROMPT_TOKENS + TOKENS} tokens or more")

    def run(self, rounds: int, say: Say) -> None:
        """Measure everything so many times; `say` is told what is being measured."""
        for _ in range(rounds):
            self._rounds += 1
            where = f"round {self._rounds} of {rounds}"
            say(f"{where}: memory and first token")
            self._read_bytes_per_s.append(read_speed())
            self._first_token_s += [self._first_token() for _ in range(FIRST_TOKENS)]
            for streams, decoding in self._decoding.items():
                say(f"{where}: decode, streams: {streams}")
                self._decode(streams, decoding)
            for tokens in PREFILLS:
                if tokens < self._engine.context_length:
                    say(f"{where}: prefill, tokens: {tokens:,}")
                    self._prefill_tokens_per_s[tokens].append(self._prefill(tokens))

    def report(self) -> Report:
        """Everything measured, as one JSON document."""
        read = Summary.of(self._read_bytes_per_s)
        return {
            "benchmark": "bench",
            "model": self._loaded.name,
            "device": self._loaded.device,
            "rounds": self._rounds,
            "weights_mb": round(self._loaded.weight_bytes / 1e6, 1),
            "cache_kb_per_token": round(self._loaded.token_bytes / 1e3, 1),
            "memory_gb_s": _scaled(self._read_bytes_per_s, 1e-9),
            "first_token_ms": _scaled(self._first_token_s, 1e3),
            "decode": {
                str(streams): {
                    "step_ms": _scaled(decoding.step_s, 1e3),
                    "tok_s": _scaled(decoding.tokens_per_s),
                    "host_ms": _scaled(decoding.host_s, 1e3),
                    "gb_s": round(decoding.bytes_per_s / 1e9, 2),
                    "of_memory_speed": round(decoding.bytes_per_s / read.median, 3),
                }
                for streams, decoding in self._decoding.items()
            },
            "prefill_tok_s": {
                str(tokens): _scaled(rates) for tokens, rates in self._prefill_tokens_per_s.items()
            },
        }

    def _first_token(self) -> float:
        began = time.perf_counter()
        [handle] = self._engine.submit([self._request(PROMPT_TOKENS, 1)])
        _wait(handle)  # it ends with its only token
        return time.perf_counter() - began

    def _decode(self, streams: int, decoding: Decoding) -> None:
        began = len(self._log.steps)
        requests = [self._request(PROMPT_TOKENS, TOKENS) for _ in range(streams)]
        for handle in self._engine.submit(requests):
            _wait(handle)
        seconds: list[float] = []
        for before, step in full_steps(self._log.steps[began:], streams):
            # A plan of several steps counts as so many steps of equal length.
            seconds.append((step.ended - before.ended) / step.plan.steps)
            decoding.host_s.append(max(0.0, step.dispatched - before.ended) / step.plan.steps)
            decoding.step_bytes.append(self._bytes_of(step))
        decoding.step_s += seconds
        decoding.tokens_per_s.append(streams * len(seconds) / sum(seconds))

    def _prefill(self, tokens: int) -> float:
        [handle] = self._engine.submit([self._request(tokens, 1)])
        _wait(handle)
        return tokens / handle.timestamps.timings().prefill_s

    def _request(self, prompt_tokens: int, tokens: int) -> Request:
        ids = self._rng.choices(range(self._loaded.tokenizer.vocab_size), k=prompt_tokens)
        return Request(tuple(ids), tokens)

    def _bytes_of(self, step: Step) -> int:
        cached = sum(row.position + 1 for row in step.plan.decode)
        return self._loaded.weight_bytes + cached * self._loaded.token_bytes


def full_steps(steps: Sequence[Step], streams: int) -> Iterator[tuple[Step, Step]]:
    """Pairs of successive steps that decode all the streams and read no prompt."""
    for pair in pairwise(steps):
        if all(step.plan.prefill is None and len(step.plan.decode) == streams for step in pair):
            yield pair


def read_speed() -> float:
    """Bytes a second that jax's device reads from its memory."""
    import jax
    import jax.numpy as jnp

    shape = (READ_BYTES // 4096, 1024)  # rows of one page each, for every core to have its share
    matrix = jax.jit(lambda: jnp.ones(shape, jnp.float32))()
    row_sums = jax.jit(lambda matrix: matrix.sum(axis=1))
    row_sums(matrix).block_until_ready()
    taken = []
    for _ in range(READS):
        began = time.perf_counter()
        row_sums(matrix).block_until_ready()
        taken.append(time.perf_counter() - began)
    return READ_BYTES / min(taken)


def format_report(report: Report) -> str:
    """The document's figures as tables for a person."""
    title = f"{report['model']} on {report['device']}, rounds: {report['rounds']}"
    title += f", weights: {report['weights_mb']:,} MB; median [min-max]"
    figures = [["first token, ms", _shown(report["first_token_ms"])]]
    for tokens, rate in report["prefill_tok_s"].items():
        figures.append([f"prefill {int(tokens):,}, tok/s", _shown(rate)])
    figures.append(["memory, GB/s", _shown(report["memory_gb_s"])])
    decode = [["streams", "step, ms", "tok/s in total", "host, ms", "GB/s", "of memory speed"]]
    for streams, found in report["decode"].items():
        spread = [_shown(found[name]) for name in ("step_ms", "tok_s", "host_ms")]
        decode.append([streams, *spread, f"{found['gb_s']:.1f}", f"{found['of_memory_speed']:.0%}"])
    return "\n\n".join([title, format_table(figures), format_table(decode)])


def _scaled(samples: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    return Summary.of([factor * sample for sample in samples]).as_json()


def _shown(summary: dict[str, float]) -> str:
    return str(Summary(**summary))


def _wait(handle: Handle) -> None:
    """Take events until the request has ended.

    Raises:
        RequestError: the engine failed it.
    """
    while isinstance(event := handle.next_event(), Token):
        pass
    if isinstance(event, Failed):
        raise event.error


@click.command("bench")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="how often to measure everything",
)
@settings_options(without=(*NOT_WITHOUT_SERVER, "fake"))
def command(rounds: int, **flags: Any) -> None:
    """Load the model with 16 slots, measure how fast it generates here, and end.

    Tables, then one line of JSON on standard output. On an otherwise idle machine only.
    """
    settings = read_settings(flags | {"slots": SLOTS})
    if settings.fake:
        exits.fail("bench measures a model: unset GEMMA_FAKE", exits.USAGE)
    log = StepLog()
    loaded = load(settings, log.around)
    try:
        measuring = Bench(loaded, log)
        measuring.run(rounds, lambda what: click.echo(f"gemma-server: {what}", err=True))
    except UsageError as error:
        exits.fail(str(error), exits.USAGE)
    except GemmaServerError as error:
        exits.fail(str(error), exits.FAILED)
    loaded.engine.stop()
    report = measuring.report()
    click.echo(format_report(report))
    click.echo(json.dumps(report))
