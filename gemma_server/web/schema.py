"""What the native routes accept."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gemma_server.engine.request import Request, SamplingOptions, random_seed
from gemma_server.errors import InvalidRequest

MAX_PROMPTS = 64
MAX_STOPS = 8
MAX_STOP_LENGTH = 64

PromptText = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]


class PromptBody(BaseModel):
    """POST /prompt. Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    prompt: PromptText | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
    sampling_steps: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] = []
    ignore_eos: bool = False
    stream: bool = False

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        """The stop strings, if any."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def steps(self, limit: int) -> int:
        """The most tokens to generate: what was asked for, or the default within the limit.

        Raises:
            InvalidRequest: more was asked for than `limit`.
        """
        if "sampling_steps" not in self.model_fields_set:
            return min(self.sampling_steps, limit)
        if self.sampling_steps > limit:
            raise InvalidRequest(
                f"sampling_steps: this server's limit is {limit}", param="sampling_steps"
            )
        return self.sampling_steps

    def request(self, token_ids: list[int], steps: int, stop_ids: frozenset[int]) -> Request:
        """The engine's request for one encoded prompt."""
        options = SamplingOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=random_seed() if self.seed is None else self.seed,
        )
        stops = frozenset[int]() if self.ignore_eos else stop_ids
        return Request(tuple(token_ids), steps, options, stops)


class EchoBody(BaseModel):
    """POST /echo: any JSON value, sent back as it came."""

    model_config = ConfigDict(extra="forbid")

    prompt: Any
