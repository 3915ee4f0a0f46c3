"""What a program has to be able to do for the rows that it is given."""

from enum import IntEnum

from gemma_server.engine.plan import Chunk, Row


class Kind(IntEnum):
    """Each can do what those before it can, and costs more. Decode has no use for the last."""

    GREEDY = 0
    RANDOM = 1
    FULL = 2  # penalties, bias, bans and logprobs
    SCORING = 3  # logprobs of the prompt

    @staticmethod
    def of(part: Chunk | Row) -> "Kind":
        """The least that will do for it."""
        sampling = part.sampling
        if isinstance(part, Chunk) and part.scored:
            return Kind.SCORING
        if sampling is None:
            return Kind.GREEDY
        if sampling.adjusts or part.banned or part.top_logprobs is not None:
            return Kind.FULL
        return Kind.RANDOM if sampling.temperature > 0 else Kind.GREEDY
