"""How much memory a device has for models."""

import math
from pathlib import Path
from typing import Any

# On a CPU the rest is for the interpreter, the requests and the system.
_SHARE = 0.9
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (_CGROUP / "memory.max", _CGROUP / "memory/memory.limit_in_bytes")  # version 2, version 1


def device_bytes(device: Any) -> float:
    """Bytes of the device that models may take: on a GPU what XLA may, on a CPU most of what the
    machine or its container has; infinity where nobody tells."""
    if device.platform != "cpu":
        return float((device.memory_stats() or {}).get("bytes_limit", math.inf))
    return _SHARE * min(_of_machine(), *map(_limit_in, _LIMITS))


def _of_machine() -> float:
    for line in _text_of(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return float(line.split()[1]) * 1024
    return math.inf


def _limit_in(file: Path) -> float:
    """The bytes that a control group allows; `max` is no limit."""
    text = _text_of(file).strip()
    return float(text) if text.isdecimal() else math.inf


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
