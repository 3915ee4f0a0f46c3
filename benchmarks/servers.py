"""Servers as subprocesses of a benchmark.

One machine's times say little, because other work disturbs them: what counts is the ratio of two
servers that took turns within one run.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, MutableSequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]

_READY = re.compile(r"(?:ready|Listening at): http://127\.0\.0\.1:(\d+)")
_READY_TIMEOUT_S = 600.0  # a first start compiles
_STOP_TIMEOUT_S = 30.0
# Settings of the person who runs the benchmark, which would change what is measured.
_NOT_INHERITED = ("GEMMA_", "MODEL_", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY")


@dataclass(frozen=True)
class Server:
    """A server that has told that it is ready."""

    pid: int
    port: int
    ready_s: float  # from the start of the process
    last_words: Collection[str]  # the lines that it has printed last


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Server]:
    """`python ARGUMENTS` as a subprocess that prints its address when ready; ends with the block.

    Raises:
        RuntimeError: it ended before it was ready; the text has its last words.
        TimeoutError: it was not ready in time.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its own process group, which its workers belong to as well
    )
    try:
        assert process.stdout is not None
        ready: Future[tuple[int, float]] = Future()
        last_words = deque[str](maxlen=20)
        watched = (process.stdout, ready, last_words)
        threading.Thread(target=_watch, args=watched, daemon=True).start()
        port, at = ready.result(_READY_TIMEOUT_S)
        yield Server(process.pid, port, at - start, last_words)
    finally:
        _stop(process)


def worker_of(master: int) -> int:
    """The process that serves."""
    [worker] = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(worker)


def end_servers_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that every `serving` block ends its server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def say(what: str) -> None:
    """Tell the person who waits what is being done."""
    print(what, file=sys.stderr, flush=True)


def _watch(
    output: IO[str], ready: Future[tuple[int, float]], last_words: MutableSequence[str]
) -> None:
    """Note the port and the moment of the ready line, and read on: a full pipe would block."""
    with output:
        for line in output:
            last_words.append(line)
            if not ready.done() and (match := _READY.search(line)):
                ready.set_result((int(match[1]), time.perf_counter()))
    if not ready.done():
        ready.set_exception(RuntimeError("a server failed to start:\n" + "".join(last_words)))


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
