"""What is said on standard error arrives whole, whoever else speaks."""

import subprocess
import sys

_THREADS, _LINES = 8, 500
_SPEAKERS = f"""
import sys, threading
from gemma_server.console import say
sys.setswitchinterval(1e-6)
def speak(name):
    for number in range({_LINES}):
        say(f"{{name}} {{number}}")
threads = [threading.Thread(target=speak, args=(name,)) for name in range({_THREADS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_lines_of_many_threads_and_processes_arrive_whole() -> None:
    command = 'for _ in 1 2; do "$0" -c "$1" & done; wait'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, _SPEAKERS], stderr=subprocess.PIPE, check=True
    )
    said = [
        f"gemma-server: {name} {number}" for name in range(_THREADS) for number in range(_LINES)
    ]
    assert sorted(done.stderr.decode().splitlines()) == sorted(2 * said)
