"""How many cases a test draws: enough to notice a change every day, or many, with `--long`."""

_long = False


def draw_all() -> None:
    """As many cases as were ever asked for; tests/conftest.py calls it before tests are read."""
    global _long
    _long = True


def cases(usual: int, long: int) -> int:
    """How many to draw: the usual number, or the one with `--long`."""
    return long if _long else usual
