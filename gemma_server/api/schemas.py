"""What the bodies of several operations share."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gemma_server.engine.priority import PRIORITIES, Priority, is_priority
from gemma_server.engine.request import MAX_TOP_LOGPROBS, random_seed
from gemma_server.errors import InvalidRequest

MAX_PROMPTS = 64
MAX_STOPS = 64
MAX_STOP_LENGTH = 256
_NULL, _NOTES = {"type": "null"}, ("title", "default", "description")
_ALL = 1 << 30  # tokens: more than any context


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Item = TypeVar("Item")
Number = TypeVar("Number", int, float)
# Ends at the first wrong item, of which a hostile body has many.
Items = Annotated[list[Item], Field(fail_fast=True)]
# 100.0 is 100 in JSON, and some clients send it. Behind the bounds, or the document loses them.
WHOLE = BeforeValidator(_whole)
CacheSalt = Annotated[str, StringConstraints(max_length=256)]
PromptText = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = StopText | Annotated[Items[StopText], Field(max_length=MAX_STOPS)]
Temperature = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
MinP = Annotated[float, Field(ge=0.0, le=1.0)]
TopPOrZero = Annotated[float, Field(ge=0.0, le=1.0)]  # 0: only the likeliest token
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
RepetitionPenalty = Annotated[float, Field(gt=0.0, le=100.0)]
LastN = Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE]  # tokens; below 0: all
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE]


class ModelBody(BaseModel):
    """A body that may name its model."""

    model: str | None = None


class ForeignBody(BaseModel):
    """A body in the form of another project, whose clients send more fields than they mean.

    Unknown fields are ignored, and null counts as absent. `REFUSED` has the fields that would
    change the answer and are not supported, each with the values that ask for nothing.
    """

    model_config = ConfigDict(extra="ignore")
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    WITHIN: ClassVar[str] = ""  # where in the whole body these fields are

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Every field that may be left out may be null."""
        schema = handler(core_schema)
        document = handler.resolve_ref_schema(schema)
        for name, field in document["properties"].items():
            if name not in document.get("required", ()):
                document["properties"][name] = _or_null(field)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _without_refused(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        document = {name: value for name, value in document.items() if value is not None}
        for name, harmless in cls.REFUSED.items():
            if name in document and not any(_same(document[name], value) for value in harmless):
                raise InvalidRequest(
                    f"{cls.WITHIN}{name} is not supported by this server; leave it out",
                    param=cls.WITHIN + name,
                    code="unsupported_field",
                )
        return document


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    choices = field.get("anyOf", [{k: v for k, v in field.items() if k not in _NOTES}])
    notes = {key: value for key, value in field.items() if key in _NOTES}
    return {"anyOf": [*(each for each in choices if each != _NULL), _NULL], **notes}


def _same(a: Any, b: Any) -> bool:
    """Equal, and not merely because False is 0."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def as_list(stop: str | list[str]) -> list[str]:
    """The stop strings, one or several."""
    return [stop] if isinstance(stop, str) else stop


def seed_of(seed: int | None, index: int) -> int:
    """The seed of the answer with this index to one prompt."""
    return random_seed() if seed is None else (seed + index) % 2**64


def first_of(*values: Number | None) -> Number:
    """The first that is given: the client's, the model's, or the dialect's, which always is."""
    return next(value for value in values if value is not None)


def temperature_and_top_p(temperature: float, top_p: float) -> tuple[float, float]:
    """Both as the engine takes them: it has the exact argmax at temperature 0 alone."""
    return (temperature, top_p) if top_p > 0.0 else (0.0, 1.0)


def penalty_window(last_n: int) -> int:
    """How many of the last tokens penalties look at, by llama.cpp's `repeat_last_n`."""
    return _ALL if last_n < 0 else min(last_n, _ALL)


def within(asked: int, limit: int | None, param: str) -> int:
    """Return `asked`.

    Raises:
        InvalidRequest: it is more than the server's operator allows.
    """
    if limit is not None and asked > limit:
        raise InvalidRequest(f"{param}: this server's limit is {limit}", param=param)
    return asked


def check_priority(word: object, param: str) -> Priority:
    """The class that a client names outside of a body; None is the default.

    Raises:
        InvalidRequest: there is no such class.
    """
    if word is None:
        return "interactive"
    if not is_priority(word):
        message = f"{param}: {str(word)[:40]!r} is not {' or '.join(PRIORITIES)}"
        raise InvalidRequest(message, param=param)
    return word


def check_tokens(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Check ids from a client.

    Raises:
        InvalidRequest: one of them is not a token.
    """
    wrong = next((index for index in ids if not 0 <= index < vocab_size), None)
    if wrong is not None:
        message = f"{param}: {wrong} is no token; they go from 0 to {vocab_size - 1}"
        raise InvalidRequest(message, param=param)
