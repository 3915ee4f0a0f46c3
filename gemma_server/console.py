"""Lines for a person on standard error."""

import sys


def say(text: str) -> None:
    """Write "gemma-server: " and a text as one whole line.

    print() writes the line's end by itself, and the threads and processes that share standard
    error come in between.
    """
    sys.stderr.write(f"gemma-server: {text}\n")
    sys.stderr.flush()
