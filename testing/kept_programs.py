"""What tests have compiled, kept for their next run in jax's own cache: warm, they take a third."""

import hashlib
import os
import platform
from pathlib import Path

_MOST = 512 << 20  # bytes; the least recently used go first
_ATTRIBUTES = ("flags", "Features")  # of a CPU, in /proc/cpuinfo: what XLA compiles for


def keep_in(folder: Path) -> None:
    """Have jax keep programs below this folder, in this process and in the servers of tests. jax
    reads it when it is imported."""
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / _cpu()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(_MOST),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def variables() -> dict[str, str]:
    """What `keep_in` has set, for the environment of another process."""
    names = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def _cpu() -> str:
    """A name for this kind of CPU: a program for another one may end the process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kind = sorted({line for line in lines if line.startswith(_ATTRIBUTES)})
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:16]
