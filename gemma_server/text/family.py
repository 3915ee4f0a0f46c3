"""The control tokens of each generation of Gemma, which share the rest of the tokenizer."""

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How turns are marked, and what ends an answer. Markers are control tokens of their own."""

    start_of_turn: str
    end_of_turn: str
    other_ends: tuple[str, ...] = ()  # end an answer too, where the vocabulary has them
    within_turns: tuple[str, ...] = ()  # mark parts of a turn

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers."""
        return (self.start_of_turn, *self.ends, *self.within_turns)

    @property
    def ends(self) -> tuple[str, ...]:
        """Those that end an answer."""
        return (self.end_of_turn, *self.other_ends)


# Gemma 1, 2 and 3. CodeGemma ends its answers with any of its own, made for filling in the middle.
GEMMA = Family(
    "<start_of_turn>",
    "<end_of_turn>",
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"),
)
# Where a tool's answer begins, the model has nothing more to say.
# Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
GEMMA4 = Family(
    "<|turn>",
    "<turn|>",
    ("<|tool_response>",),
    (
        *("<|think|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>"),
        *("<|tool_call>", "<tool_call|>", "<tool_response|>", '<|"|>'),
    ),
)


def family_with(pieces: Container[str]) -> Family:
    """The family whose turns a vocabulary can mark."""
    return GEMMA4 if GEMMA4.start_of_turn in pieces else GEMMA
