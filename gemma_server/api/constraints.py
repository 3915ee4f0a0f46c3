"""What clients ask an answer to be, under the names of four servers."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api import heavy
from gemma_server.api.schemas import Items
from gemma_server.engine.constraint import Constraint
from gemma_server.errors import GrammarRefused, InvalidRequest
from gemma_server.serving.model import GenerativeModel
from gemma_server.text import grammar
from gemma_server.text.chat import Tool
from gemma_server.text.constraint import InTurn
from gemma_server.text.prompted_tools import PromptedTools
from gemma_server.text.turn_stream import is_in_thought

MAX_CHOICES = 1024
Choices = Annotated[Items[str], Field(min_length=1, max_length=MAX_CHOICES)]
Schema = dict[str, Any] | bool
_ANY = grammar.ANY_OBJECT


@dataclass(frozen=True)
class Asked:
    """A constraint that a client asks for, by the field `param`."""

    param: str
    write: Callable[[], str]  # the grammar
    size: int  # characters, about

    @cached_property
    def grammar(self) -> str:
        """The grammar.

        Raises:
            InvalidRequest: answers cannot be kept to it; the text says where it is at fault.
        """
        with blamed_on(self.param):
            return heavy.run(self.size, self.write)


class JsonSchemaFormat(BaseModel):
    """A schema by name. It is enforced whether or not it is `strict`."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(max_length=256)] = ""
    description: str | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`; llama.cpp's clients put the schema beside the type."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    bare_schema: Schema | None = Field(None, alias="schema")

    def asked(self, param: str) -> list[Asked]:
        """The constraint, unless any text will do.

        Raises:
            InvalidRequest: there is no schema where one has to be.
        """
        if self.type == "text":
            return []
        named = self.json_schema
        found = self.bare_schema if named is None else named.json_schema
        if found is not None:
            return [schema_asked(param, found)]
        if self.type == "json_schema":
            where = f"{param}.json_schema.schema"
            raise InvalidRequest(f"{where}: is missing", param=where)
        return [schema_asked(param, grammar.ANY_OBJECT)]


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`, of which one is given."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    json_: Schema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def asked(self, param: str) -> list[Asked]:
        """The constraints.

        Raises:
            InvalidRequest: there is none.
        """
        found = all_asked(
            schemas={
                f"{param}.json": self.json_,
                f"{param}.json_object": grammar.ANY_OBJECT if self.json_object else None,
            },
            regexes={f"{param}.regex": self.regex},
            choices={f"{param}.choice": self.choice},
            grammars={f"{param}.grammar": self.grammar},
        )
        if not found:
            raise InvalidRequest(f"{param}: says nothing", param=param)
        return found


class blamed_on:  # it reads as a function
    """Names the field whose grammar is refused within."""

    def __init__(self, param: str) -> None:
        self._param = param

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises InvalidRequest in place of GrammarRefused."""
        if isinstance(error, GrammarRefused):
            where = f"{self._param}: {error.where}: " if error.where else f"{self._param}: "
            message = f"{where}{error.reason}"[:1000]
            raise InvalidRequest(message, param=self._param, code=error.code) from None


def all_asked(
    *,
    schemas: dict[str, Any],
    regexes: dict[str, str | None],
    choices: dict[str, list[str] | None],
    grammars: dict[str, str | None],
) -> list[Asked]:
    """The constraints of all fields that are given."""
    found = [schema_asked(param, value) for param, value in schemas.items() if value is not None]
    for param, pattern in regexes.items():
        if pattern is not None:
            found.append(_text_asked(param, grammar.of_regex, pattern))
    for param, texts in choices.items():
        if texts is not None:
            size = sum(map(len, texts))
            found.append(Asked(param, partial(grammar.of_choice, texts), size))
    for param, text in grammars.items():
        if text is not None:
            found.append(_text_asked(param, grammar.of_grammar, text))
    return found


def schema_asked(param: str, schema: Any) -> Asked:
    """JSON of this schema, which some clients send as JSON in a string.

    Raises:
        InvalidRequest: the string is no JSON.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{param}: no JSON: {error}"[:300], param=param) from None
    return Asked(param, partial(grammar.of_schema, schema), len(str(schema)))


def _text_asked(param: str, write: Callable[[str], str], text: str) -> Asked:
    return Asked(param, partial(write, text), len(text))


def only_one(asked: Iterable[Asked]) -> Asked | None:
    """The constraint, if there is one.

    Raises:
        InvalidRequest: there are several.
    """
    found = list(asked)
    if len(found) > 1:
        names = " and ".join(each.param for each in found)
        raise InvalidRequest(f"{names}: an answer has one form", param=found[1].param)
    return found[0] if found else None


def refuse_beside(what: str, given: dict[str, bool]) -> None:
    """Refuse the fields that are given, which do not go with `what`.

    Raises:
        InvalidRequest: naming the first.
    """
    for name, is_given in given.items():
        if is_given:
            raise InvalidRequest(f"{name}: does not go with {what}", param=name)


@dataclass(frozen=True)
class Form:
    """What the answers to one request have to be."""

    asked: Asked | None = None
    tools: Sequence[Tool] = ()  # that may be called
    must_call: bool = False
    only_one_call: bool = False
    thinks: bool = False

    @property
    def checks_calls(self) -> bool:
        """Whether arguments have to fit the schema of some tool, which is strict."""
        return any(tool.strict for tool in self.tools)

    @property
    def binds(self) -> bool:
        """Whether there is something that the answers have to be."""
        return self.asked is not None or self.must_call or self.checks_calls

    def binds_text(self, loaded: GenerativeModel) -> bool:
        """Whether that is true of their text."""
        return self.asked is not None or (self.binds and isinstance(loaded.chat, PromptedTools))

    @property
    def name(self) -> str:
        """The field that says it."""
        if self.asked is not None:
            return self.asked.param
        return "tool_choice" if self.must_call else "a strict tool"

    def start(
        self, loaded: GenerativeModel, prompt: Sequence[int], count: int
    ) -> list[Constraint | None]:
        """A constraint for each of `count` answers to a prompt.

        Raises:
            InvalidRequest: answers cannot be kept to what is asked.
        """
        is_prompted = isinstance(loaded.chat, PromptedTools)
        end = None if is_prompted else loaded.tokenizer.tags.call.end
        text, call = self._text_grammar(is_prompted=is_prompted), self._call_grammar(end)
        if text is None and call is None:
            return [None] * count
        return [self._one(loaded, prompt, text, call) for _ in range(count)]

    def _one(
        self, loaded: GenerativeModel, prompt: Sequence[int], text: str | None, call: str | None
    ) -> Constraint:
        with blamed_on("tools" if self.asked is None else self.asked.param):
            content = None if text is None else loaded.grammars.start(text)
        if content is not None and call is None and not self.thinks:
            return content
        with blamed_on("tools"):
            end = loaded.tokenizer.tags.call.end
            calls = None if call is None else loaded.grammars.start(call, end)
        return InTurn(
            loaded.tokenizer,
            content,
            calls,
            must_call=self.must_call,
            only_one_call=self.only_one_call,
            may_think=self.thinks,
            in_thought=self.thinks and is_in_thought(loaded.tokenizer, prompt),
        )

    def _text_grammar(self, *, is_prompted: bool) -> str | None:
        """What the text has to be; calls are text too where the model has no tags for them."""
        if is_prompted and self.tools and self.asked is not None:
            param = self.asked.param
            message = f"{param}: this model calls tools in JSON too; leave out one of them"
            raise InvalidRequest(message, param=param)
        if is_prompted and self.tools and (self.must_call or self.checks_calls):
            or_text = not self.must_call
            tools = self._enforced
            return self._of_tools(lambda: grammar.of_json_call(tools, or_text=or_text))
        return None if self.asked is None else self.asked.grammar

    def _call_grammar(self, end: int | None) -> str | None:
        """What a call has to be, where that matters and the model has tags for it."""
        matters = self.must_call or self.checks_calls or self.asked is not None
        if end is None or not (self.tools and matters):
            return None
        return self._of_tools(lambda: grammar.of_call(self._enforced, end))

    @property
    def _enforced(self) -> list[Tool]:
        """The tools, those without their schema whose arguments need not fit it."""
        if self.must_call:
            return list(self.tools)
        return [tool if tool.strict else replace(tool, parameters=_ANY) for tool in self.tools]

    def _of_tools(self, write: Callable[[], str]) -> str:
        size = sum(len(str(tool)) for tool in self.tools)
        with blamed_on("tools"):
            return heavy.run(size, write)
