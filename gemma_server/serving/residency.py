"""When a model comes into memory, and when it leaves."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Residency:
    """What its operator says of it. Ollama's and Triton's users know the choices as `keep_alive`
    and the model control modes."""

    on_request: bool = False  # loaded when it is asked for first, not at the start
    pinned: bool = False  # stays, whoever else needs the memory
    keep_alive_s: float = math.inf  # how long it stays after its last request
    max_waiting: int = 256  # requests, while it is loaded
