"""What the server's own operations accept."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api.constraints import (
    Asked,
    Choices,
    Schema,
    all_asked,
    only_one,
    refuse_beside,
)
from gemma_server.api.schemas import (
    MAX_PROMPTS,
    WHOLE,
    CacheSalt,
    Items,
    MinP,
    ModelBody,
    PromptText,
    Stops,
    Temperature,
    TopK,
    TopLogprobs,
    TopP,
    as_list,
    seed_of,
    within,
)
from gemma_server.engine.constraint import Constraint
from gemma_server.engine.priority import Priority
from gemma_server.engine.request import Request, SamplingParams


class PromptOptions(BaseModel):
    """How a text is to be continued. Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    sampling_steps: Annotated[int, Field(ge=1), WHOLE] = 128
    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**64), WHOLE] | None = None
    stop: Stops = Field([])
    ignore_eos: bool = False
    response_schema: Schema | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    cache_prompt: bool = True
    cache_salt: CacheSalt = ""

    @property
    def asked(self) -> Asked | None:
        """What the answer has to be.

        Raises:
            InvalidRequest: it has to be several things, or does not go with other fields.
        """
        found = all_asked(
            schemas={"response_schema": self.response_schema},
            regexes={"regex": self.regex},
            choices={"choice": self.choice},
            grammars={"grammar": self.grammar},
        )
        asked = only_one(found)
        if asked is not None:
            given = {"stop": bool(as_list(self.stop)), "ignore_eos": self.ignore_eos}
            refuse_beside(asked.param, given)
        return asked

    def steps(self, limit: int) -> int:
        """The most tokens to generate: what was asked for, or the default within the limit.

        Raises:
            InvalidRequest: more was asked for than `limit`.
        """
        if "sampling_steps" not in self.model_fields_set:
            return min(self.sampling_steps, limit)
        return within(self.sampling_steps, limit, "sampling_steps")

    def request(
        self,
        token_ids: list[int],
        steps: int,
        stop_ids: frozenset[int],
        constraint: Constraint | None,
    ) -> Request:
        """The engine's request for one encoded prompt."""
        options = SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed_of(self.seed, 0),
        )
        stops = frozenset[int]() if self.ignore_eos else stop_ids
        return Request(
            tuple(token_ids),
            steps,
            options,
            stops,
            constraint=constraint,
            cache_prompt=self.cache_prompt,
            cache_salt=self.cache_salt,
        )


class PromptBody(PromptOptions, ModelBody):
    """POST /prompt."""

    prompt: PromptText | Annotated[Items[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
    priority: Priority | None = None
    stream: bool = False

    @property
    def texts(self) -> dict[str, str]:
        """The prompts, one or several, each under the name of its field."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt}
        return {f"prompt[{index}]": text for index, text in enumerate(self.prompt)}


class EchoBody(BaseModel):
    """POST /echo: any JSON value, sent back as it came."""

    model_config = ConfigDict(extra="forbid")

    prompt: Any


class ScoreBody(ModelBody):
    """How likely the model finds a text."""

    model_config = ConfigDict(extra="forbid")

    prompt: PromptText
    top_logprobs: TopLogprobs = 0
