"""The control tokens of each generation of Gemma, which share the rest of the tokenizer."""

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """The control tokens around a part of a turn."""

    begin: str
    end: str


@dataclass(frozen=True)
class Tags:
    """What marks the parts of a turn that are no text for the reader."""

    declaration: Span  # of a tool
    call: Span
    response: Span  # a tool's
    quote: str  # at both ends of a string within these
    thought: Span | None = None
    think: str | None = None  # asks for thoughts

    @property
    def markers(self) -> tuple[str, ...]:
        """All of them."""
        spans = (self.declaration, self.call, self.response, *filter(None, [self.thought]))
        others = filter(None, [self.quote, self.think])
        return (*(marker for span in spans for marker in span), *others)


@dataclass(frozen=True)
class Family:
    """How turns are marked, and what ends an answer. Markers are control tokens of their own."""

    start_of_turn: str
    end_of_turn: str
    other_ends: tuple[str, ...] = ()  # end an answer too, where the vocabulary has them
    tags: Tags | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers, each once."""
        tags = () if self.tags is None else self.tags.markers
        return tuple(dict.fromkeys((self.start_of_turn, *self.ends, *tags)))

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
# Where a tool's response begins, the model has nothing more to say.
# Source: ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices
_FUNCTION_TAGS = Tags(
    declaration=Span("<start_function_declaration>", "<end_function_declaration>"),
    call=Span("<start_function_call>", "<end_function_call>"),
    response=Span("<start_function_response>", "<end_function_response>"),
    quote="<escape>",
)
FUNCTION_GEMMA = Family(
    GEMMA.start_of_turn, GEMMA.end_of_turn, (_FUNCTION_TAGS.response.begin,), _FUNCTION_TAGS
)
# Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
THOUGHT, THINK = Span("<|channel>", "<channel|>"), "<|think|>"
GEMMA4_TAGS = Tags(
    declaration=Span("<|tool>", "<tool|>"),
    call=Span("<|tool_call>", "<tool_call|>"),
    response=Span("<|tool_response>", "<tool_response|>"),
    quote='<|"|>',
    thought=THOUGHT,
    think=THINK,
)
GEMMA4 = Family("<|turn>", "<turn|>", ("<|tool_response>",), GEMMA4_TAGS)


def family_with(pieces: Container[str]) -> Family:
    """The family whose turns, and calls of tools, a vocabulary can mark."""
    if GEMMA4.start_of_turn in pieces:
        return GEMMA4
    return FUNCTION_GEMMA if _FUNCTION_TAGS.call.begin in pieces else GEMMA
