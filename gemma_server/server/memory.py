"""How the worker keeps its memory small."""

import ctypes
import gc
from typing import Any

_ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h
_YOUNG_OBJECTS = 10_000  # collected together: a large body makes hundreds of thousands


def share_arenas() -> None:
    """Have all threads share two arenas of glibc's heap, which has eight for each CPU.

    An arena keeps what its threads have freed: a large request in each would stay forever. Other C
    libraries have no such setting.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return to the system what glibc's heap has free between what is used; takes milliseconds.

    By itself it returns only what is free at its end.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def reclaim() -> None:
    """Find what nothing refers to any more, also of what `settle` left out, and give it back."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    give_back()


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)


def settle() -> None:
    """Leave all that loading made out of later collections: it is much, and stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
