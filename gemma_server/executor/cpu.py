"""This machine's CPUs, as far as XLA's programs depend on them."""

import os
from pathlib import Path

_FEATURES = ("flags", "Feat")  # lines of /proc/cpuinfo: x86-64's and ARM's


def description() -> list[str]:
    """How many this process may use, among which XLA splits work; and their features, where the
    system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return [_usable(), *sorted({line for line in lines if line.startswith(_FEATURES)})]


def _usable() -> str:
    if hasattr(os, "sched_getaffinity"):
        return str(len(os.sched_getaffinity(0)))
    return str(os.cpu_count())
