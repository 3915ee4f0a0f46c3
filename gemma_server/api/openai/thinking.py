"""Whether the model is to think, as vLLM's and OpenAI's clients say it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from gemma_server.api.chat import require_thinking
from gemma_server.serving.model import GenerativeModel

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateOptions(BaseModel):
    """What vLLM's clients tell the chat template. Other names, which it might know, are refused."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None
    thinking: bool | None = None

    @property
    def thinks(self) -> bool | None:
        """Whether the model is to think, if that is said."""
        return self.thinking if self.enable_thinking is None else self.enable_thinking


def wants_thoughts(
    options: TemplateOptions, effort: Effort | None, loaded: GenerativeModel
) -> bool:
    """Whether the model is to think. An effort is advice, which a model that cannot ignores."""
    if options.thinks is None:
        return effort not in (None, "none", "minimal") and loaded.chat.takes_thinking
    if options.thinks:
        require_thinking(loaded, "chat_template_kwargs")
    return options.thinks
