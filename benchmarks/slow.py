"""Whether clients that read slowly slow the engine down.

    python -m benchmarks.slow [--rounds N]

The server serves the demo model on the CPU as it comes. 64 clients stream answers of 64 tokens, the
next as soon as one has ended, for 15 seconds. In one turn they read as fast as they can, in the
other one event a second, through the smallest buffer that Linux gives a socket. What counts are the
tokens that the engine sampled meanwhile, by its own count.

The last line of standard output is the result as one JSON document.
"""

import json
import random
import socket
import threading
import time
import urllib.request
from collections import defaultdict

from benchmarks.servers import Server
from benchmarks.sides import (
    Side,
    beside_each_other,
    both_sides,
    in_rounds,
    parse_rounds,
    random_words,
)
from gemma_server.settings import default_cache_dir
from gemma_server.weights.demo import demo_checkpoint

CLIENTS, TOKENS, SECONDS = 64, 64, 15.0


def main() -> None:
    """Run the benchmark."""
    rounds = parse_rounds("slow", "clients that read slowly")
    side, _ = both_sides(demo_checkpoint(default_cache_dir()))
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def measure_all(number: int, servers: list[tuple[Side, Server]]) -> None:
        [(_, server)] = servers
        speed(server, 0.0)  # warms up
        for name, pause_s in (("fast readers", 0.0), ("slow readers", 1.0)):
            samples[name]["speed"].append(speed(server, pause_s))

    in_rounds(rounds, [side], measure_all)
    table, rows = beside_each_other({"speed": "engine, tok/s"}, samples)
    print(table)
    print(json.dumps({"benchmark": "slow", "rounds": rounds, "rows": rows}))


def speed(server: Server, pause_s: float) -> float:
    """Tokens a second that the engine samples for such clients."""
    over = threading.Event()
    clients = [
        threading.Thread(target=read, args=(server.port, random.Random(seed), pause_s, over))
        for seed in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(2)
    before, began = sampled(server), time.perf_counter()
    time.sleep(SECONDS)
    found = (sampled(server) - before) / (time.perf_counter() - began)
    over.set()
    for client in clients:
        client.join()
    return found


def read(port: int, rng: random.Random, pause_s: float, over: threading.Event) -> None:
    """Stream answers, a pause behind each piece that is read, until it is over."""
    while not over.is_set():
        body = {"prompt": random_words(6, rng), "sampling_steps": TOKENS, "ignore_eos": True}
        data = json.dumps({**body, "stream": True}).encode()
        head = f"POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        with socket.socket() as connection:
            connection.settimeout(SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            connection.connect(("127.0.0.1", port))
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
            end = b""
            while not over.wait(pause_s) and not end.endswith(b"0\r\n\r\n"):
                piece = connection.recv(64)
                end = (end + piece)[-5:]
                if not piece:
                    break


def sampled(server: Server) -> float:
    """Tokens that the engine has sampled since its start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        lines = response.read().decode().splitlines()
    [found] = [line for line in lines if line.startswith("gemma_tokens_drawn_total{")]
    return float(found.split()[1])


if __name__ == "__main__":
    main()
