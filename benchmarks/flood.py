"""What one server's other clients feel while somebody sends it what costs most to refuse.

    python -m benchmarks.flood [--seconds N] [--fake]

For each kind of large body, 24 clients in processes of their own send it again and again, while one
client asks /healthz and another a short /prompt. Told are the times of both, the prompt's as a
multiple of its time alone, and what the worker's memory was before, after and 10 s after the last.
The last line of standard output is the result as one JSON document.
"""

import argparse
import http.client
import json
import multiprocessing
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.servers import end_servers_on_sigterm, positive, say, serving, worker_of
from gemma_server.cli.report import format_table

PROCESSES, CLIENTS = 2, 12
REST_S = 10.0
_LETTERS = "".join(chr(97 + index * 7919 % 26) for index in range(1_000_000))
KINDS: Mapping[str, tuple[str, Any]] = {
    "60,000 unknown fields": ("/prompt", {"prompt": "x"} | {f"f{i:09d}": 1 for i in range(60_000)}),
    "a text without spaces": ("/tokenize", {"prompt": _LETTERS}),
    "140,000 wrong items": ("/v1/completions", {"prompt": [["x"]] * 140_000}),
    "130,000 texts for ids": ("/v1/completions", {"prompt": ["x"] * 130_000 + [1]}),
    "a prompt that cannot fit": ("/prompt", {"prompt": "ab " * 300_000}),
}
_PROMPT = b'{"prompt": "hello there", "sampling_steps": 8}'


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.flood", description="expensive requests")
    parser.add_argument("--seconds", type=positive, default=6, help="of each kind; default: 6")
    parser.add_argument("--fake", action="store_true", help="without a model")
    options = parser.parse_args()
    end_servers_on_sigterm()
    flags = ["--fake"] if options.fake else []
    with serving("-m", "gemma_server", "serve", "--port", "0", *flags) as server:
        print_report(measure(server.port, worker_of(server.pid), options.seconds))


def measure(port: int, worker: int, seconds: float) -> dict[str, Any]:
    """The figures of every kind, and the memory around them in MB."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    alone_s = statistics.median(timed(connection, "POST", "/prompt", _PROMPT) for _ in range(7))
    report: dict[str, Any] = {"prompt_alone_ms": 1000 * alone_s, "before_mb": resident_mb(worker)}
    report["kinds"] = {}
    for kind in KINDS:
        say(f"{kind}, {seconds} s")
        report["kinds"][kind] = flooded(port, kind, seconds, alone_s)
    report["after_mb"] = resident_mb(worker)
    time.sleep(REST_S)
    report["rested_mb"] = resident_mb(worker)
    return report


def flooded(port: int, kind: str, seconds: float, alone_s: float) -> dict[str, Any]:
    """The times in milliseconds of others while this kind of body comes."""
    statuses: Any = multiprocessing.Queue()
    senders = [
        multiprocessing.Process(target=send, args=(port, kind, seconds, statuses))
        for _ in range(PROCESSES)
    ]
    for sender in senders:
        sender.start()
    health = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    prompts = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    until, checks, answers = time.monotonic() + seconds, list[float](), list[float]()
    time.sleep(0.5)
    while time.monotonic() < until:
        checks.append(timed(health, "GET", "/healthz"))
        if len(checks) % 4 == 0:
            answers.append(timed(prompts, "POST", "/prompt", _PROMPT))
        time.sleep(0.03)
    answered: Counter[str] = sum((statuses.get() for _ in senders), Counter())
    for sender in senders:
        sender.join()
    return {
        "health_p50_ms": 1000 * statistics.median(checks),
        "health_p99_ms": 1000 * sorted(checks)[int(0.99 * len(checks))],
        "prompt_times": statistics.median(answers) / alone_s if answers else None,
        "answered": dict(answered),
    }


def send(port: int, kind: str, seconds: float, statuses: Any) -> None:
    """Several clients that send this body until the time is over; in a process of its own."""
    path, document = KINDS[kind]
    body, until, found = json.dumps(document).encode(), time.monotonic() + seconds, Counter[str]()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < until:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            found[str(response.status)] += 1
            if response.status == 429:
                time.sleep(float(response.headers["Retry-After"]))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses.put(found)


def timed(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> float:
    """Seconds until the whole answer is there, which has to be a good one."""
    began = time.monotonic()
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    assert response.status == 200, response.status
    return time.monotonic() - began


def resident_mb(pid: int) -> float:
    """The memory that the process takes."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def print_report(report: dict[str, Any]) -> None:
    """A table for a person, and the figures as one line."""
    rows = [["", "health p50 ms", "p99 ms", "a prompt takes", "answered"]]
    for kind, found in report["kinds"].items():
        times = "-" if found["prompt_times"] is None else f"{found['prompt_times']:.1f} times"
        answered = ", ".join(f"{count} x {status}" for status, count in found["answered"].items())
        health = (f"{found['health_p50_ms']:.0f}", f"{found['health_p99_ms']:.0f}")
        rows.append([kind, *health, times, answered])
    print(format_table(rows))
    print(
        f"a prompt alone: {report['prompt_alone_ms']:.0f} ms; memory: {report['before_mb']:.0f} MB "
        f"before, {report['after_mb']:.0f} after, {report['rested_mb']:.0f} after {REST_S:.0f} s"
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
