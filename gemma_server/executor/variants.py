"""What a program has to be able to do for its rows."""

from dataclasses import astuple, dataclass
from functools import reduce

from gemma_server.engine.plan import Chunk, Row


@dataclass(frozen=True)
class ProgramVariant:
    """A program's abilities beyond the argmax of the model's logits; each costs time."""

    sampling: bool = False  # temperature, top-k, top-p, min-p
    penalties: bool = False  # bias, bans and masks too: all that changes logits before the argmax
    logprobs: bool = False  # of what is sampled
    scoring: bool = False  # logprobs of the prompt

    def __or__(self, other: "ProgramVariant") -> "ProgramVariant":
        """The variant that can do both."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return ProgramVariant(*(one or another for one, another in pairs))

    def covers(self, needed: "ProgramVariant") -> bool:
        """Whether it can do all that is needed."""
        return self | needed == self

    def __str__(self) -> str:
        """A name for its programs."""
        names = [name for name, able in vars(self).items() if able]
        return "+".join(names) or "greedy"


GREEDY = ProgramVariant()
SAMPLING = ProgramVariant(sampling=True)
EVERYTHING_SAMPLED = ProgramVariant(sampling=True, penalties=True, logprobs=True)
EVERYTHING = EVERYTHING_SAMPLED | ProgramVariant(scoring=True)


def needed_by(parts: tuple[Chunk | Row, ...]) -> ProgramVariant:
    """The smallest variant that covers all of them."""
    return reduce(ProgramVariant.__or__, map(_needed_by_one, parts), GREEDY)


def least_of(variants: tuple[ProgramVariant, ...], needed: ProgramVariant) -> ProgramVariant:
    """The first that covers what is needed; the list goes from cheap to expensive."""
    return next(variant for variant in variants if variant.covers(needed))


def _is_masked(part: Chunk | Row) -> bool:
    masks = (part.mask,) if isinstance(part, Chunk) else part.masks
    return any(mask is not None for mask in masks)


def _needed_by_one(part: Chunk | Row) -> ProgramVariant:
    scoring = isinstance(part, Chunk) and bool(part.scored)
    sampling = part.sampling
    if sampling is None:  # a chunk after which nothing is sampled
        return ProgramVariant(scoring=scoring)
    return ProgramVariant(
        sampling=sampling.temperature > 0,
        penalties=sampling.adjusts or bool(part.banned) or _is_masked(part),
        logprobs=part.top_logprobs is not None,
        scoring=scoring,
    )
