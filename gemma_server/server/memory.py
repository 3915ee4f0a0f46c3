"""How the worker keeps its memory small."""

import ctypes
import gc

_ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h
_YOUNG_OBJECTS = 10_000  # collected together: a large body makes hundreds of thousands


def share_arenas() -> None:
    """Have all threads share two arenas of glibc's heap, which has eight for each CPU.

    An arena keeps what its threads have freed: a large request in each would stay forever. Other C
    libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def settle() -> None:
    """Leave all that loading made out of later collections: it is much, and stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
