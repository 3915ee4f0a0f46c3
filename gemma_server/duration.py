"""Spans of time as Go and Ollama write them: `5m`, `1h30m`, `250ms`, or seconds as a number."""

import math
import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_PART = f"(?:{_NUMBER})(?:ns|us|µs|ms|s|m|h)"
PATTERN = f"^-?(?:{_NUMBER}|(?:{_PART})+)$"


def seconds_of(value: str | int | float) -> float:
    """The seconds of a span; below zero is for ever, which is infinity.

    Raises:
        ValueError: it is none.
    """
    seconds = _of_text(value) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise ValueError("not a span of time: NaN")
    return math.inf if seconds < 0 else seconds


def _of_text(text: str) -> float:
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"not a span of time, such as 5m, 1h30m or -1 for ever: {text[:40]!r}")
    parts = re.findall(f"({_NUMBER})(ns|us|µs|ms|s|m|h)", text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return (-total if text.startswith("-") else total) if parts else float(text)
