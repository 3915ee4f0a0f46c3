"""Ollama's `keep_alive`: how long a model stays in memory after a request."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from gemma_server.duration import PATTERN, seconds_of
from gemma_server.serving.models import Models

_Text = Annotated[str, Field(pattern=PATTERN)]
KeepAlive = Annotated[int | float | _Text, AfterValidator(seconds_of)]  # in seconds


class KeptBody(BaseModel):
    """A body that may say it."""

    model: str
    keep_alive: KeepAlive | None = None

    @property
    def keeps_s(self) -> float | None:
        """Seconds; infinity: for ever; None: as it was."""
        return None if self.keep_alive is None else seconds_of(self.keep_alive)

    def keep(self, models: Models) -> None:
        """Let the model stay so long after this request, unless it stays anyway."""
        if self.keeps_s is not None:
            models.keep(self.model, self.keeps_s)

    def unload(self, models: Models) -> bool:
        """Whether a body that asks for nothing else unloads the model, which it then does.

        Raises:
            ModelNotFound: there is no such model.
            ModelStays: it may not leave.
        """
        if self.keeps_s != 0:
            return False
        models.release(self.model)
        return True
