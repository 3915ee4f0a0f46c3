"""Many clients for a while: some seconds of them in every run, and far more with `--long`.

Each prints its figures, which `pytest -rP` shows and docs/reliability.md quotes.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.flood import KINDS, REST_S, resident_mb
from benchmarks.flood import send as flood
from testing.counts import cases, is_long
from testing.http_client import ask, send
from testing.server import SERVE, Server, serve_slowly
from testing.tiny import tiny_weights, write_gguf
from testing.waiting import wait_until
from tests.frames.peer import PIECE, Peer
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

KEPT_MB = 50  # what a worker may keep of many small requests
KEPT_OF_FLOODS_MB = 100
TINY = ("-m", "gemma_server", "serve", "--port", "0", "--context-length", "96")
NEVER_COMPILED = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def test_a_crowd_that_never_waits_is_refused_and_nobody_is_dropped(start: Start) -> None:
    server = start(*serve_slowly(0.005, "--slots", "4", "--max-queue", "16"))
    until = time.monotonic() + cases(3, 40)

    def push(number: int) -> Counter[int]:
        found: Counter[int] = Counter()
        connection = server.connect(60)
        while time.monotonic() < until:
            text = f"client {number}, try {found.total()}"
            answer = ask(connection, "POST", "/prompt", {"prompt": text})
            if answer.status == 200:
                assert answer.json["response"] == text
            else:
                assert answer.error["code"] == "overloaded"
                assert int(answer.headers["Retry-After"]) >= 1
            found[answer.status] += 1
        connection.close()
        return found

    def check_health() -> list[float]:
        taken_s, connection = [], server.connect()
        while time.monotonic() < until:
            began = time.monotonic()
            assert ask(connection, "GET", "/healthz").status == 200
            taken_s.append(time.monotonic() - began)
            time.sleep(0.02)
        connection.close()
        return sorted(taken_s)

    clients = cases(50, 200)
    with ThreadPoolExecutor(clients + 1) as pool:
        health = pool.submit(check_health)
        found = sum(pool.map(push, range(clients)), Counter())
    assert found[200] > 0
    assert found[429] > found[200]
    assert found.total() == found[200] + found[429]
    wait_until(lambda: server.load() == (0, 0))
    assert "Traceback" not in server.stderr
    p99_ms = 1000 * health.result()[int(0.99 * len(health.result()))]
    print(f"{clients} clients, {cases(3, 40)} s: {dict(found)}, health p99 {p99_ms:.0f} ms")


@pytest.fixture(params=["fake", *(["gemma3"] if is_long() else [])])
def crowded(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Server:
    """A server with frames; with `--long` also one with a tiny model's real programs."""
    args: tuple[str, ...] = SERVE
    env: dict[str, str] = {}
    if request.param != "fake":
        path = write_gguf(tmp_path / "model.gguf", request.param, tiny_weights(request.param))
        args, env = TINY, NEVER_COMPILED | {"MODEL_CHECKPOINT": str(path)}
    limits = ("--slots", "4", "--max-queue", "64")
    return start(*args, *limits, "--frames", str(tmp_path / "frames"), env=env)


class Mixed:
    """Requests in every way; a third are given up, the others have their answer checked."""

    def __init__(self, server: Server, frames: Path) -> None:
        self._server, self._frames = server, frames
        self.counted: Counter[str] = Counter()
        self._requests = [
            {"prompt": f"{letter * 7} {number}", "sampling_steps": 24, "ignore_eos": True}
            | ({"temperature": 0.9, "seed": number} if number % 2 else {})
            for number, letter in enumerate("abcdefgh")
        ]
        self._alone = [server.prompt(**fields).json["response"] for fields in self._requests]
        self._ways: list[Callable[[dict[str, Any], str], None]] = [
            self.whole,
            self.streamed,
            self.by_frames,
            self.left_while_waiting,
            self.left_in_its_stream,
            self.cancelled_by_frames,
            self.refused,
            self.by_completions,
            self.streamed,
        ]

    def run(self, count: int) -> None:
        """So many requests by eight clients."""
        numbers = iter(range(count))
        lock = threading.Lock()

        def client(_: int) -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                which = number % len(self._requests)
                way = self._ways[number % len(self._ways)]
                way(self._requests[which], self._alone[which])
                with lock:
                    self.counted[way.__name__] += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(8)))

    def whole(self, fields: dict[str, Any], alone: str) -> None:
        assert self._server.prompt(**fields).json["response"] == alone

    def streamed(self, fields: dict[str, Any], alone: str) -> None:
        assert self._server.stream(**fields).text() == alone

    def by_completions(self, fields: dict[str, Any], alone: str) -> None:
        body = {name: value for name, value in fields.items() if name != "sampling_steps"}
        body |= {
            "max_tokens": fields["sampling_steps"],
            "temperature": fields.get("temperature", 0),
        }
        answer = self._server.ask("POST", "/v1/completions", body)
        assert answer.json["choices"][0]["text"] == alone

    def by_frames(self, fields: dict[str, Any], alone: str) -> None:
        with Peer(self._frames) as peer:
            peer.ask(id=1, op="generate", **fields)
            text, last = peer.whole(1)
            assert text + last.get("response", "") == alone

    def cancelled_by_frames(self, fields: dict[str, Any], alone: str) -> None:
        with Peer(self._frames) as peer:
            peer.ask(id=1, op="generate", **fields | {"stream": True})
            answer = peer.answer()
            assert answer is not None
            kind, document = answer
            assert kind != PIECE or alone.startswith(document["response"])

    def left_in_its_stream(self, fields: dict[str, Any], alone: str) -> None:
        stream = self._server.stream(**fields)
        next(stream.events())
        stream.close()

    def left_while_waiting(self, fields: dict[str, Any], alone: str) -> None:
        connection = self._server.connect()
        send(connection, "POST", "/prompt", fields)
        connection.close()

    def refused(self, fields: dict[str, Any], alone: str) -> None:
        assert self._server.prompt(**fields, temprature=1).error["code"] == "unknown_field"


def test_mixed_requests_answer_as_alone_and_leave_nothing_behind(
    crowded: Server, tmp_path: Path
) -> None:
    def count(what: str) -> int:
        return len(list(Path(f"/proc/{crowded.worker}/{what}").iterdir()))

    def settled() -> tuple[float, int, int, float]:
        wait_until(lambda: crowded.load() == (0, 0))
        time.sleep(0.5)  # the last descriptors close behind the last answers
        compiled = crowded.metrics()["gemma_compilations_total"]
        return resident_mb(crowded.worker), count("fd"), count("task"), compiled

    mixed = Mixed(crowded, tmp_path / "frames")
    mixed.run(cases(90, 900))
    before_mb, descriptors, threads, compiled = settled()
    began, requests = time.monotonic(), cases(360, 10_000)
    mixed.run(requests)
    seconds = time.monotonic() - began
    after_mb, *left = settled()
    assert after_mb <= before_mb + KEPT_MB
    assert left[0] <= descriptors + 3
    assert left[1] <= threads + 5
    assert left[2] == compiled
    assert "Traceback" not in crowded.stderr
    print(f"{requests} requests, {seconds:.0f} s: {before_mb:.0f} MB before, {after_mb:.0f} after")


def test_memory_comes_back_after_what_costs_most_to_refuse(start: Start) -> None:
    server = start()
    server.prompt("hello")
    before_mb = resident_mb(server.worker)
    answered: queue.Queue[Counter[str]] = queue.Queue()
    for kind in KINDS:
        flood(server.port, kind, cases(1, 10), answered)
    statuses = sum((answered.get() for _ in KINDS), Counter[str]())
    assert set(statuses) <= {"200", "400", "429"}  # /tokenize answers
    most_mb, until = before_mb + KEPT_OF_FLOODS_MB, time.monotonic() + REST_S
    while (after_mb := resident_mb(server.worker)) > most_mb and time.monotonic() < until:
        time.sleep(0.1)
    assert after_mb <= most_mb
    assert server.prompt("hello").json["response"] == "hello"
    print(f"{statuses.total()} floods: {before_mb:.0f} MB before, {after_mb:.0f} after")
