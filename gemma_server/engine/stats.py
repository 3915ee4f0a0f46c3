"""What an engine tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """A moment's figures, and totals since the start."""

    slots: int
    active: int  # slots at work
    queued: int  # requests that wait for a slot
    steps: int  # that the device ran
    tokens_sampled: int  # for requests, those that ended an answer included
