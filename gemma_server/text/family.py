"""The control tokens of each generation of Gemma, which share the rest of the tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How turns are marked, and what ends an answer. Markers are control tokens of their own."""

    start_of_turn: str
    end_of_turn: str
    other_ends: tuple[str, ...] = ()  # end an answer too, where the vocabulary has them

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers."""
        return (self.start_of_turn, self.end_of_turn, *self.other_ends)


# Gemma 1, 2 and 3. CodeGemma ends its answers with any of its own, made for filling in the middle.
GEMMA = Family(
    "<start_of_turn>",
    "<end_of_turn>",
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"),
)
