"""What tests have compiled, kept in jax's own cache: the next run takes two thirds of the time."""

import hashlib
import os
import platform
from pathlib import Path

from gemma_server.executor import cpu

_MOST = 512 << 20  # bytes; the least recently used go first


def keep_in(folder: Path) -> None:
    """Have jax keep programs below this folder, in this process and in the servers of tests. jax
    reads it when it is imported."""
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / _machine()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(_MOST),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def variables() -> dict[str, str]:
    """What `keep_in` has set, for the environment of another process."""
    names = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def _machine() -> str:
    """A name for machines like this one: a program for other CPUs may end the process."""
    parts = "\n".join([platform.machine(), *cpu.description()])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
