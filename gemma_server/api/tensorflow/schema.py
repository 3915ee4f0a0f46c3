"""What TensorFlow Serving's `:predict` accepts: instances row by row, or columns of inputs."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api.document import check
from gemma_server.api.native.schema import PromptBody
from gemma_server.api.schemas import MAX_PROMPTS, ForeignBody, Items, PromptText
from gemma_server.errors import InvalidRequest

SIGNATURE = "serving_default"
_OF_ALL = {  # why an instance cannot have it
    "model": "the path names the model",
    "stream": "nothing is streamed",
    "priority": "the header X-Priority says it for all instances",
}


class Instance(BaseModel):
    """The fields of /prompt; they are checked as such."""

    model_config = ConfigDict(extra="allow")

    prompt: PromptText


Instances = Annotated[Items[PromptText | Instance], Field(min_length=1, max_length=MAX_PROMPTS)]
Column = Annotated[Items[Any], Field(min_length=1, max_length=MAX_PROMPTS)]


class PredictBody(ForeignBody):
    """POST /v1/models/NAME:predict."""

    signature_name: str = SIGNATURE
    instances: Instances | None = None
    inputs: PromptText | Column | dict[str, Column] | None = None

    @property
    def in_columns(self) -> bool:
        """Whether the answer is in columns, too."""
        return self.instances is None

    def bodies(self) -> list[PromptBody]:
        """A body of /prompt for each instance.

        Raises:
            InvalidRequest: an instance is none, or there is none.
        """
        if self.signature_name != SIGNATURE:
            message = f"signature_name: {self.signature_name[:100]!r} is not {SIGNATURE!r}"
            raise InvalidRequest(message, param="signature_name")
        if (self.instances is None) == (self.inputs is None):
            raise InvalidRequest("send instances or inputs, one of the two", param="instances")
        return [_body(place, fields) for place, fields in self._rows()]

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """Each instance, and where it is."""
        if self.instances is not None:
            for index, each in enumerate(self.instances):
                row = each if isinstance(each, str) else each.model_dump()
                yield f"instances[{index}]", row
            return
        columns = self.inputs
        if isinstance(columns, str):
            yield "inputs", columns
        elif isinstance(columns, list):
            yield from ((f"inputs[{index}]", each) for index, each in enumerate(columns))
        elif columns is not None:
            sizes = {name: len(column) for name, column in columns.items()}
            if len(set(sizes.values())) != 1:
                found = ", ".join(f"{name[:40]} {size}" for name, size in list(sizes.items())[:8])
                message = f"inputs: columns of one length, and not of {found or 'none'}"
                raise InvalidRequest(message, param="inputs")
            for index, values in enumerate(zip(*columns.values(), strict=True)):
                yield f"inputs[{index}]", dict(zip(columns, values, strict=True))


def _body(place: str, row: Any) -> PromptBody:
    """The instance as a body of /prompt.

    Raises:
        InvalidRequest: with its place.
    """
    fields = {"prompt": row} if isinstance(row, str) else row
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise InvalidRequest(f"{place}: a prompt, or an object with one", param=place)
    for name, why in _OF_ALL.items():
        if name in fields:
            message = f"{place}.{name}: {why}"
            raise InvalidRequest(message, param=f"{place}.{name}")
    try:
        return check(PromptBody, fields)
    except InvalidRequest as error:
        message, param = f"{place}: {error}", f"{place}.{error.param}" if error.param else place
        raise InvalidRequest(message, param=param, code=error.code) from None
