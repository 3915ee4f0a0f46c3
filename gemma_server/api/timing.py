"""How long each stage of an answer took, in milliseconds."""

import time

Stages = dict[str, float]  # "parse_ms" and the like


def milliseconds(seconds: float) -> float:
    """Milliseconds, rounded as in answers."""
    return round(seconds * 1000, 3)


class timed:
    """Adds the time that a block takes to a stage."""

    def __init__(self, stages: Stages, stage: str) -> None:
        self._stages, self._name = stages, f"{stage}_ms"

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        spent = milliseconds(time.perf_counter() - self._began)
        self._stages[self._name] = round(self._stages.get(self._name, 0.0) + spent, 3)
