"""An engine's figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Figures of one moment, and totals since the start."""

    slots: int
    active: int  # slots in use
    queued: int  # requests that wait for a slot
    steps: int  # that the device ran
    tokens_sampled: int  # for requests, stop tokens included
    prompt_cache_queries: int = 0  # prompts that could have begun like another text
    prompt_cache_hits: int = 0  # those that did
    prompt_cache_tokens: int = 0  # that were not read again
