"""Tensors as JSON: what a request brings, and what an answer gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gemma_server.api.schemas import MAX_PROMPTS, WHOLE, Items
from gemma_server.errors import InvalidRequest

Datatype = Literal["BYTES", "BOOL", "FP32", "UINT32"]
TEXT_INPUT = "text_input"
SAMPLING_PARAMETERS = "sampling_parameters"
FLAGS = {"stream", "exclude_input_in_output"}  # parameters that may be tensors of their own
_DATATYPES: dict[str, Datatype] = {  # of every input
    TEXT_INPUT: "BYTES",
    SAMPLING_PARAMETERS: "BYTES",
    **dict.fromkeys(sorted(FLAGS), "BOOL"),
}
_TYPES: dict[Datatype, tuple[type, str]] = {"BYTES": (str, "a string"), "BOOL": (bool, "a boolean")}

Size = Annotated[int, Field(ge=0, lt=2**63), WHOLE]


class InputParameters(BaseModel):
    """What a tensor's own parameters may say; binary data are refused by name."""

    model_config = ConfigDict(extra="forbid")

    content_type: Literal["str"] | None = None  # by MLServer's clients


class Input(BaseModel):
    """A tensor of a request."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: Annotated[Items[Size], Field(max_length=8)]
    datatype: str
    data: Items[Any]
    parameters: InputParameters = InputParameters()

    def elements(self, place: str) -> list[Any]:
        """Its elements, nested or not: strings, or booleans.

        Raises:
            InvalidRequest: name, datatype, shape or data are wrong, and which.
        """
        datatype = _DATATYPES.get(self.name)
        if datatype is None:
            names = ", ".join(_DATATYPES)
            raise _wrong(f"{place}.name", f"{self.name[:100]!r} is no input; these are: {names}")
        if self.datatype != datatype:
            message = f"{self.name} is {datatype}, and not {self.datatype[:40]!r}"
            raise _wrong(f"{place}.datatype", message)
        if len(self.shape) not in (1, 2) or self.shape[1:] not in ([], [1]):
            raise _wrong(f"{place}.shape", f"[n] or [n, 1], and not {self.shape}")
        most = MAX_PROMPTS if self.name == TEXT_INPUT else 1
        if not 1 <= self.shape[0] <= most:
            raise _wrong(f"{place}.shape", f"{self.name} has 1 to {most} elements")
        if len(self.data) != self.shape[0]:
            message = f"{len(self.data)} elements, and not {self.shape[0]} as in the shape"
            raise _wrong(f"{place}.data", message)
        kind, called = _TYPES[datatype]
        elements = [self._unnested(each) for each in self.data]
        for index, each in enumerate(elements):
            if not isinstance(each, kind):
                raise _wrong(f"{place}.data[{index}]", f"{called} is wanted")
        return elements

    def _unnested(self, element: Any) -> Any:
        is_row = len(self.shape) == 2 and isinstance(element, list) and len(element) == 1
        return element[0] if is_row else element


@dataclass(frozen=True)
class Elements:
    """What is in a tensor of a request, and where it came."""

    place: str
    shape: list[int]
    values: list[Any]  # strings, or booleans

    def texts(self) -> dict[str, str]:
        """The strings, each under the name of its place.

        Raises:
            InvalidRequest: one is empty.
        """
        found = {f"{self.place}.data[{index}]": each for index, each in enumerate(self.values)}
        for param, text in found.items():
            if not text:
                raise _wrong(param, "the text is empty")
        return found


class OutputParameters(BaseModel):
    """In which form it is wanted: it comes as JSON, which clients of either form read."""

    model_config = ConfigDict(extra="forbid")

    binary_data: bool = False


class Wanted(BaseModel):
    """A tensor that the answer is to have."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: OutputParameters = OutputParameters()


class Output(TypedDict):
    """A tensor of an answer."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[str] | list[int] | list[float]


class TensorMetadata(TypedDict):
    """What a tensor looks like; -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[int]


def by_name(inputs: Sequence[Input]) -> dict[str, Elements]:
    """The elements of each tensor.

    Raises:
        InvalidRequest: a tensor is wrong, is there twice, or there is no text.
    """
    found: dict[str, Elements] = {}
    for index, each in enumerate(inputs):
        place = f"inputs[{index}]"
        if each.name in found:
            raise _wrong(f"{place}.name", f"{each.name} is there twice")
        found[each.name] = Elements(place, each.shape, each.elements(place))
    if TEXT_INPUT not in found:
        raise _wrong("inputs", f"{TEXT_INPUT} is missing")
    return found


def names_of(wanted: Sequence[Wanted], outputs: Sequence[TensorMetadata]) -> list[str]:
    """The names of the wanted outputs, in their order; all that there are if none is named.

    Raises:
        InvalidRequest: there is no such output, or one is wanted twice.
    """
    known, names = [each["name"] for each in outputs], list[str]()
    for index, each in enumerate(wanted):
        if each.name not in known:
            message = f"{each.name[:100]!r} is no output; these are: {', '.join(known)}"
            raise _wrong(f"outputs[{index}].name", message)
        if each.name in names:
            raise _wrong(f"outputs[{index}].name", f"{each.name} is there twice")
        names.append(each.name)
    return names or known


def _wrong(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {message}", param=param)
