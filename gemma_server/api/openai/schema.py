"""What chats and completions accept; extensions have vLLM's names."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from gemma_server.api.chat import ChatMessage
from gemma_server.api.constraints import (
    Asked,
    Choices,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    all_asked,
    only_one,
    refuse_beside,
)
from gemma_server.api.openai.foreign import FOREIGN
from gemma_server.api.openai.thinking import Effort, TemplateOptions
from gemma_server.api.schemas import (
    MAX_PROMPTS,
    WHOLE,
    CacheSalt,
    ForeignBody,
    Items,
    LastN,
    MinP,
    ModelBody,
    Penalty,
    PromptText,
    RepetitionPenalty,
    Stops,
    Temperature,
    TopLogprobs,
    TopPOrZero,
    as_list,
    check_tokens,
    first_of,
    penalty_window,
    temperature_and_top_p,
    within,
)
from gemma_server.api.tools import NamedTool, Tools, ToolSpec
from gemma_server.engine.priority import Priority
from gemma_server.engine.request import MAX_BIAS, SamplingParams
from gemma_server.errors import InvalidRequest
from gemma_server.text.chat import Tool
from gemma_server.weights.sampling_defaults import SamplingDefaults

_MAX_TOKENS = 1 << 30  # more than any context
MAX_IDS = 1 << 17
ServiceTier = Literal["auto", "default", "flex", "priority", "scale", "fast"]
MaxTokens = Annotated[int, Field(ge=1, le=_MAX_TOKENS), WHOLE]
TokenIds = Annotated[Items[int], Field(min_length=1, max_length=MAX_IDS)]


def _few_biases(biases: Any) -> Any:
    """Before each is checked: pydantic would collect what is wrong with all of them."""
    if isinstance(biases, dict) and len(biases) > MAX_BIAS:
        raise ValueError(f"{len(biases)} tokens, and at most {MAX_BIAS} can have a bias")
    return biases


class StreamOptions(ForeignBody):
    """What a stream contains beside the text."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"continuous_usage_stats": (False,)}
    WITHIN: ClassVar[str] = "stream_options."

    include_usage: bool = False


class OpenAIBody(ForeignBody, ModelBody):
    """What chats and completions share."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopPOrZero | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), WHOLE] | None = None
    min_p: MinP = 0.0
    n: Annotated[int, Field(ge=1, le=MAX_PROMPTS), WHOLE] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE] | None = None
    stop: Stops = Field([])
    stop_token_ids: Annotated[Items[int], Field(max_length=64)] = Field([])
    ignore_eos: bool = False
    truncate: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS), WHOLE] = 0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    repeat_last_n: LastN | None = None
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
        Field(max_length=MAX_BIAS),
        BeforeValidator(_few_biases),
    ] = Field({})
    user: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: Schema | str | None = None
    regex: str | None = None
    grammar: str | None = None
    cache_prompt: bool = True
    cache_salt: CacheSalt = ""
    service_tier: ServiceTier | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options.include_usage and not self.stream:
            name = "stream_options"
            raise InvalidRequest(f"{name}: they go with a stream alone", param=name)
        return self

    @property
    def priority(self) -> Priority | None:
        """The class that it waits in, by its tier; None where the tier leaves that open."""
        if self.service_tier in (None, "auto"):
            return None
        return "batch" if self.service_tier == "flex" else "interactive"

    @property
    def asked(self) -> Asked | None:
        """What the answer has to be.

        Raises:
            InvalidRequest: it has to be several things, or does not go with other fields.
        """
        formats = {
            "response_format": self.response_format,
            "structured_outputs": self.structured_outputs,
        }
        found = [each for name, how in formats.items() if how for each in how.asked(name)]
        found += all_asked(
            schemas={"guided_json": self.guided_json, "json_schema": self.json_schema},
            regexes={"guided_regex": self.guided_regex, "regex": self.regex},
            choices={"guided_choice": self.guided_choice},
            grammars={"guided_grammar": self.guided_grammar, "grammar": self.grammar or None},
        )
        return only_one(found)

    def refuse_other_ends(self, what: str, *, of_text: bool) -> None:
        """Refuse what would end an answer before it is whole, or keep it from ending; a stop string
        only where the text itself is bound, which alone it concerns.

        Raises:
            InvalidRequest: naming the field that does not go with `what`.
        """
        given = {
            "stop": of_text and bool(as_list(self.stop)),
            "stop_token_ids": bool(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens > 0,
        }
        refuse_beside(what, given)

    def bias(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        """The tokens whose logits are changed, and by how much.

        Raises:
            InvalidRequest: a key is not a token.
        """
        for key in self.logit_bias:
            if not re.fullmatch("[0-9]{1,9}", key):
                message = f"logit_bias: {key[:40]!r} is no token's id"
                raise InvalidRequest(message, param="logit_bias")
        check_tokens([int(key) for key in self.logit_bias], vocab_size, "logit_bias")
        return tuple((int(key), value) for key, value in self.logit_bias.items())

    def sampling(
        self, seed: int, bias: tuple[tuple[int, float], ...], model_s: SamplingDefaults
    ) -> SamplingParams:
        """How to choose each token."""
        temperature, top_p = temperature_and_top_p(
            first_of(self.temperature, model_s.temperature, 1.0),
            first_of(self.top_p, model_s.top_p, 1.0),
        )
        last_n = self.repeat_last_n
        return SamplingParams(
            temperature=temperature,
            top_k=max(0, first_of(self.top_k, model_s.top_k, 0)),
            top_p=top_p,
            min_p=self.min_p,
            seed=seed,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            penalty_window=last_n if last_n is None else penalty_window(last_n),
            bias=bias,
        )

    def stop_ids(self, model_s: frozenset[int], vocab_size: int) -> frozenset[int]:
        """The tokens that end an answer.

        Raises:
            InvalidRequest: one of stop_token_ids is not a token.
        """
        check_tokens(self.stop_token_ids, vocab_size, "stop_token_ids")
        own = frozenset[int]() if self.ignore_eos else model_s
        return own | frozenset(self.stop_token_ids)


class ChatCompletionBody(OpenAIBody):
    """POST /v1/chat/completions."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **FOREIGN,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "chat_template": ("",),
        "documents": ([],),
        "echo": (False,),
        # how thoughts and calls are told
        **dict.fromkeys(("include_reasoning", "separate_reasoning", "stream_reasoning"), (True,)),
        "reasoning_format": ("auto", "deepseek"),
        "parse_tool_calls": (True,),
        "thinking_token_budget": (),
    }

    messages: Annotated[Items[ChatMessage], Field(min_length=1, max_length=4096)]
    tools: Tools = Field([])
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: TemplateOptions = TemplateOptions()
    reasoning_effort: Effort | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None  # unless the last message goes on

    @property
    def goes_on(self) -> bool:
        """Whether the model continues the last message, which is its own, as in vLLM.

        Raises:
            InvalidRequest: that message is not its own, or both a continuation and a new answer are
                wanted, or neither.
        """
        check_end(self.messages, self.continue_final_message, self.add_generation_prompt)
        return self.continue_final_message

    @property
    def shown_tools(self) -> list[ToolSpec]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    def usable(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        """Those of the tools that the model may call.

        Raises:
            InvalidRequest: it must call one that there is not.
        """
        choice = self.tool_choice
        if isinstance(choice, str):
            named = list(tools)
        else:
            named = [tool for tool in tools if tool.name == choice.function.name]
        if self.must_call and not named:
            raise InvalidRequest("tool_choice: there is no such tool", param="tool_choice")
        return named

    @property
    def must_call(self) -> bool:
        """Whether the model has to call a tool."""
        return self.tool_choice not in ("none", "auto")

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each; None for no logprobs."""
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs: needs logprobs to be true"
            raise InvalidRequest(message, param="top_logprobs")
        return self.top_logprobs if self.logprobs else None

    @property
    def scores_prompt(self) -> bool:
        """A chat's prompt is not shown."""
        return False

    def steps(self, context_length: int, max_steps: int | None) -> int:
        """The most tokens to generate; by default up to the model's end or the context's.

        Raises:
            InvalidRequest: more than the server's operator allows.
        """
        if self.max_completion_tokens is not None:
            return within(self.max_completion_tokens, max_steps, "max_completion_tokens")
        if self.max_tokens is not None:
            return within(self.max_tokens, max_steps, "max_tokens")
        return min(context_length, max_steps or context_length)


class CompletionBody(OpenAIBody):
    """POST /v1/completions."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **FOREIGN,
        "suffix": ("",),
    }

    prompt: (
        PromptText
        | TokenIds
        | Annotated[Items[PromptText | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool = False
    max_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS), WHOLE] | None = None
    logprobs: TopLogprobs | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each; None for no logprobs."""
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        """An echoed prompt has logprobs too."""
        return self.echo and self.logprobs is not None

    @property
    def has_several_prompts(self) -> bool:
        """A list of prompts, which may have one item; a list of ids is one prompt."""
        return isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)

    @property
    def prompts(self) -> list[Any]:
        """The prompts, each a text or a list of ids."""
        return list(self.prompt) if self.has_several_prompts else [self.prompt]

    def steps(self, context_length: int, max_steps: int | None) -> int:
        """The most tokens to generate, by default 16 as at OpenAI.

        Raises:
            InvalidRequest: more than the server's operator allows.
        """
        if self.max_tokens is None:
            return min(16, max_steps or context_length)
        return within(self.max_tokens, max_steps, "max_tokens")


def check_end(messages: list[ChatMessage], goes_on: bool, opens_turn: bool | None) -> None:
    """Refuse two ends of a chat at once, and none.

    Raises:
        InvalidRequest: the last message is not the model's own and goes on, or both a continuation
            and a new answer are wanted, or neither.
    """
    name = "continue_final_message"
    if goes_on and messages[-1].role != "assistant":
        raise InvalidRequest(f"{name}: the last message is not the assistant's", param=name)
    if goes_on and opens_turn:
        message = f"{name}: the last message goes on, or a new one begins: add_generation_prompt"
        raise InvalidRequest(message, param=name)
    if not goes_on and opens_turn is False:
        name = "add_generation_prompt"
        message = f"{name}: false goes with continue_final_message alone"
        raise InvalidRequest(message, param=name, code="unsupported_field")
