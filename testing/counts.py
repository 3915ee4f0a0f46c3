"""How many cases a test draws: enough to notice a change every day, or many, with `--long`."""

from testing.oracle.gemma import PRESETS

_long = False


def draw_all() -> None:
    """As many cases as were ever asked for; tests/conftest.py calls it before tests are read."""
    global _long
    _long = True


def cases(usual: int, long: int) -> int:
    """How many to draw: the usual number, or the one with `--long`."""
    return long if _long else usual


def is_long() -> bool:
    """Whether this is a run with `--long`."""
    return _long


def families() -> list[str]:
    """The oracle's presets for what depends on the family alone: one of each, or all of them."""
    return [*PRESETS] if _long else ["gemma1-mqa", "gemma2", "gemma3"]
