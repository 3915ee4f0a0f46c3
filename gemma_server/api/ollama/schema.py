"""What Ollama's routes accept, with Ollama's defaults (ollama/ollama, `api/types.go`)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from gemma_server.api.chat import Messages
from gemma_server.api.constraints import Asked, Schema, refuse_beside, schema_asked
from gemma_server.api.ollama.keep_alive import KeptBody
from gemma_server.api.schemas import (
    WHOLE,
    ForeignBody,
    Items,
    LastN,
    MinP,
    ModelBody,
    Penalty,
    RepetitionPenalty,
    Stops,
    Temperature,
    TopK,
    TopLogprobs,
    TopPOrZero,
    as_list,
    first_of,
    penalty_window,
    seed_of,
    temperature_and_top_p,
    within,
)
from gemma_server.api.tools import Tools
from gemma_server.engine.request import SamplingParams
from gemma_server.errors import InvalidRequest
from gemma_server.text.grammar import ANY_OBJECT
from gemma_server.weights.sampling_defaults import SamplingDefaults

Integer = Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE]


def check_num_ctx(tokens: int, context_length: int) -> None:
    """Refuse a larger context than there is.

    Raises:
        InvalidRequest: `options.num_ctx` is too large.
    """
    if tokens > context_length:
        raise InvalidRequest(
            f"options.num_ctx: this server's context has {context_length} tokens; "
            "start it with a larger --context-length",
            param="options.num_ctx",
        )


class Options(ForeignBody):
    """How to sample, and how many tokens. Options that only tune Ollama's runner are ignored."""

    WITHIN: ClassVar[str] = "options."
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "typical_p": (1, 0),
        "tfs_z": (1, 0),
        "mirostat": (0,),
        "penalize_newline": (True, False),  # Ollama's own engine has long ignored it
    }

    num_predict: Integer = -1
    num_ctx: Integer = 0
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopPOrZero | None = None
    min_p: MinP = 0.0
    seed: Integer = -1  # which is random
    stop: Stops = Field([])
    repeat_penalty: RepetitionPenalty = 1.0
    repeat_last_n: LastN = 64
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0

    def sampling(self, model_s: SamplingDefaults) -> SamplingParams:
        """How to choose each token. What a model's files recommend goes before Ollama's defaults,
        as the parameters of its own models do."""
        temperature, top_p = temperature_and_top_p(
            first_of(self.temperature, model_s.temperature, 0.8),
            first_of(self.top_p, model_s.top_p, 0.9),
        )
        return SamplingParams(
            temperature=temperature,
            top_k=first_of(self.top_k, model_s.top_k, 40),
            top_p=top_p,
            min_p=self.min_p,
            seed=seed_of(None if self.seed == -1 else self.seed, 0),
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            penalty_window=penalty_window(self.repeat_last_n),
        )

    def steps(self, context_length: int, max_steps: int | None) -> int:
        """The most tokens to generate; with `num_predict` below 1, as many as are allowed.

        Raises:
            InvalidRequest: more than the server's operator allows, or a larger context.
        """
        check_num_ctx(self.num_ctx, context_length)
        limit = min(context_length, max_steps or context_length)
        if self.num_predict < 1:
            return limit
        return min(within(self.num_predict, max_steps, "options.num_predict"), context_length)


class OllamaBody(ForeignBody, ModelBody, KeptBody):
    """What /api/generate and /api/chat share."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "shift": (False,),
        "suffix": ("",),
        "images": ([],),
        "template": ("",),
        **dict.fromkeys(("width", "height", "steps"), (0,)),  # of an image
    }

    model: Annotated[str, Field(min_length=1)]
    format: Schema | Literal["", "json"] | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    stream: bool = True
    options: Options = Options()
    truncate: bool = False  # Ollama's default is true: it truncates without notice
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0

    @property
    def asked(self) -> Asked | None:
        """What the answer has to be.

        Raises:
            InvalidRequest: it does not go with other fields.
        """
        if self.format in (None, ""):
            return None
        refuse_beside("format", {"options.stop": bool(as_list(self.options.stop))})
        schema = ANY_OBJECT if self.format == "json" else self.format
        return schema_asked("format", schema)

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens to return with each; None for no logprobs."""
        return self.top_logprobs if self.logprobs else None


class GenerateBody(OllamaBody):
    """POST /api/generate."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**OllamaBody.REFUSED, "tools": ([],)}

    prompt: str = ""
    system: str = ""
    raw: bool = False
    context: Annotated[Items[int], Field(max_length=1 << 17)] = Field([])


class ChatBody(OllamaBody):
    """POST /api/chat."""

    messages: Messages = Field([])
    tools: Tools = Field([])


class ShowBody(ForeignBody, ModelBody):
    """POST /api/show; older clients say `name`."""

    model: str = ""
    name: str = ""

    @model_validator(mode="after")
    def _either_name(self) -> Self:
        """Go's client always sends both, one of them empty."""
        self.model = self.model or self.name
        return self
