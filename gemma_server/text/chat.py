"""What a chat is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments, which
    have to fit it if it is `strict`."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool = False

    def told(self) -> dict[str, Any]:
        """What a model is told of it."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class ToolCall:
    """A call by the model. `arguments` are JSON values by name."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""  # the client's name for the call


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    A tool's message follows the model's that called it, and says which call it answers.
    """

    role: Role
    content: str
    thought: str = ""  # what the model thought before the content
    calls: tuple[ToolCall, ...] = ()  # by the model
    answers: ToolCall | None = None  # the call, in a tool's message
