"""Tools and their calls as OpenAI's and Ollama's clients send them, and calls as they get them."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from typing_extensions import TypedDict

from gemma_server.api.schemas import Items
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel
from gemma_server.text.chat import Tool, ToolCall
from gemma_server.text.notation import checked
from gemma_server.text.prompted_tools import PromptedTools
from gemma_server.text.turn_stream import Reading

MAX_TOOLS = 128
MAX_CALLS = 128  # in one message
_DEEPEST = 64  # values within each other, as in the schemas of answers
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class FunctionSpec(BaseModel):
    """A function. `parameters` is the JSON schema of an object."""

    model_config = ConfigDict(extra="ignore")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"] = "function"
    function: FunctionSpec


class CalledSpec(BaseModel):
    """What was called. OpenAI's clients send the arguments as JSON in a string, Ollama's as an
    object."""

    model_config = ConfigDict(extra="ignore")

    name: ToolName
    arguments: str | dict[str, Any] = Field({})


class CallSpec(BaseModel):
    """A call that the model made earlier."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledSpec


class NamedFunction(BaseModel):
    """A function by name."""

    model_config = ConfigDict(extra="ignore")

    name: ToolName


class NamedTool(BaseModel):
    """The tool that has to be called."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"] = "function"
    function: NamedFunction


Tools = Annotated[Items[ToolSpec], Field(max_length=MAX_TOOLS)]
Calls = Annotated[Items[CallSpec], Field(max_length=MAX_CALLS)]


class CalledFunction(TypedDict):
    """What the model calls, with JSON."""

    name: str
    arguments: str


class CallDocument(TypedDict):
    """A call in an answer, in OpenAI's form."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CallDelta(CallDocument):
    """A call in a stream, whole, and its place among the calls of the answer."""

    index: int


def declared(loaded: GenerativeModel, specs: Sequence[ToolSpec]) -> tuple[Tool, ...]:
    """The tools as templates take them.

    Raises:
        InvalidRequest: the model has no tools, or one of these cannot be declared.
    """
    if specs and not loaded.chat.takes_tools:
        raise InvalidRequest(
            f"tools are not supported by {loaded.name}, whose template has none; leave them out",
            param="tools",
            code="unsupported_field",
        )
    return tuple(_tool(f"tools[{index}].function", spec) for index, spec in enumerate(specs))


def reading_of(
    loaded: GenerativeModel, tools: Sequence[Tool], *, only_one: bool = False
) -> Reading:
    """How an answer is read that may call these tools."""
    is_prompted = isinstance(loaded.chat, PromptedTools)
    names = frozenset(tool.name for tool in tools) if is_prompted else frozenset[str]()
    return Reading(calls=bool(tools), only_one=only_one, names=names)


def made(where: str, calls: Sequence[CallSpec]) -> tuple[ToolCall, ...]:
    """Calls of the past as templates take them.

    Raises:
        InvalidRequest: the arguments of one are not a JSON object.
    """
    return tuple(
        ToolCall(
            call.function.name,
            _arguments(f"{where}[{index}].function.arguments", call.function.arguments),
            call.id,
        )
        for index, call in enumerate(calls)
    )


def call_document(call: ToolCall) -> CallDocument:
    """A call for OpenAI's clients."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": new_call_id(),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def new_call_id() -> str:
    """A name for a call, by which its response refers to it."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _tool(where: str, spec: ToolSpec) -> Tool:
    function = spec.function
    schema = {"type": "object", **(function.parameters or {})}
    _check_depth(f"{where}.parameters", schema)
    if schema["type"] != "object":
        param = f"{where}.parameters.type"
        raise InvalidRequest(f"{param}: must be object", param=param)
    if not isinstance(schema.get("properties", {}), dict):
        param = f"{where}.parameters.properties"
        raise InvalidRequest(f"{param}: must be an object", param=param)
    description = function.description or ""
    _check_text(where, [description, schema])
    return Tool(function.name, description, schema, strict=bool(function.strict))


def _arguments(where: str, arguments: str | dict[str, Any]) -> Mapping[str, Any]:
    found: Any = arguments
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where}: must be a JSON object", param=where)
    _check_depth(where, found)
    _check_text(where, found)
    return found


def _check_text(where: str, value: Any) -> None:
    try:
        checked(value)
    except ValueError:
        message = f"{where}: has a lone surrogate, or a number that JSON has not"
        raise InvalidRequest(message, param=where) from None


def _check_depth(where: str, value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise InvalidRequest(f"{where}: is nested too deeply, by more than {_DEEPEST}", param=where)
