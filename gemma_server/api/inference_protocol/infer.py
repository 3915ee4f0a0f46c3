"""`infer`: texts as a tensor are continued, or embedded, and the answer is tensors.

The wire format follows kserve/open-inference-protocol's `specification/protocol/inference_rest.md`,
and the tensors' names triton-inference-server/vllm_backend's `src/model.py`.
"""

from itertools import chain
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gemma_server.api import heavy
from gemma_server.api.caller import Caller
from gemma_server.api.document import check, parse
from gemma_server.api.embedding import Cut, EmbeddingJob, encode_texts
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.inference_protocol.parameters import Parameters
from gemma_server.api.inference_protocol.paths import for_each_version
from gemma_server.api.inference_protocol.tensor import (
    FLAGS,
    SAMPLING_PARAMETERS,
    TEXT_INPUT,
    Elements,
    Input,
    Output,
    TensorMetadata,
    Wanted,
    by_name,
    names_of,
)
from gemma_server.api.native.handlers import begin
from gemma_server.api.operation import Operation
from gemma_server.api.schemas import Items
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import EmbeddingModel, GenerativeModel, LoadedModel
from gemma_server.serving.models import Models

INPUTS: list[TensorMetadata] = [{"name": TEXT_INPUT, "datatype": "BYTES", "shape": [-1]}]
_TEXT_OUTPUTS: list[TensorMetadata] = [
    {"name": "text_output", "datatype": "BYTES", "shape": [-1]},
    {"name": "finish_reason", "datatype": "BYTES", "shape": [-1]},
    {"name": "num_input_tokens", "datatype": "UINT32", "shape": [-1]},
    {"name": "num_output_tokens", "datatype": "UINT32", "shape": [-1]},
]
_OF_THE_FORM = {"binary_data_output", "content_type"}  # no options of the model
_MAX_TENSORS = 16


class InferParameters(Parameters):
    """The options of all texts, and what clients say of the form."""

    binary_data_output: bool = False  # the answer is JSON, which clients of either form read
    content_type: Literal["str"] | None = None  # by MLServer's clients


class InferBody(BaseModel):
    """POST /v2/models/NAME/infer."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    inputs: Annotated[Items[Input], Field(min_length=1, max_length=_MAX_TENSORS)]
    outputs: Annotated[Items[Wanted], Field(max_length=_MAX_TENSORS)] = []
    parameters: InferParameters = InferParameters()


class Inferred(TypedDict):
    """The answer."""

    id: NotRequired[str]  # of the request
    model_name: str
    model_version: str  # a whole number
    outputs: list[Output]


def infer(body: InferBody, models: Models, caller: Caller) -> Inferred:
    """Continue or embed all texts, side by side."""
    loaded = caller.hold(models.resolve_any, caller.asked)
    names = names_of(body.outputs, outputs_of(loaded))
    tensors = by_name(body.inputs)
    options = _options(body.parameters, tensors)
    if isinstance(loaded, EmbeddingModel):
        outputs = _embed(tensors[TEXT_INPUT], options, loaded, models, caller)
    else:
        assert isinstance(loaded, GenerativeModel)
        outputs = _generate(tensors[TEXT_INPUT], options, loaded, models, caller)
    found = {each["name"]: each for each in outputs}
    answer: Inferred = {
        "model_name": loaded.name,
        "model_version": str(loaded.version),
        "outputs": [found[name] for name in names],
    }
    return {"id": body.id, **answer} if body.id else answer


def outputs_of(loaded: LoadedModel) -> list[TensorMetadata]:
    """What the model gives."""
    if isinstance(loaded, EmbeddingModel):
        return [{"name": "embedding", "datatype": "FP32", "shape": [-1, loaded.width]}]
    return _TEXT_OUTPUTS


def _options(parameters: InferParameters, tensors: dict[str, Elements]) -> Parameters:
    """The options of all texts, be they parameters or tensors.

    Raises:
        InvalidRequest: they are both, or ask for a stream.
    """
    options: Parameters = parameters
    if (tensor := tensors.get(SAMPLING_PARAMETERS)) is not None:
        if _given(parameters):
            message = f"{tensor.place}: {SAMPLING_PARAMETERS} do not go with parameters"
            raise InvalidRequest(message, param=tensor.place)
        options = _sampling_parameters(f"{tensor.place}.data[0]", tensor.values[0])
    for name in FLAGS & set(tensors):
        if name in options.model_fields_set:
            place = tensors[name].place
            raise InvalidRequest(f"{place}: {name} is a parameter, too", param=place)
        options = options.model_copy(update={name: tensors[name].values[0]})
    options.refuse_to_stream()
    return options


def _given(options: Parameters) -> list[str]:
    """The names of the model's options that are there."""
    return sorted(options.model_fields_set - _OF_THE_FORM)


def _sampling_parameters(place: str, text: str) -> Parameters:
    """Options as a tensor of JSON; Triton's own clients write the numbers as strings.

    Raises:
        InvalidRequest: with its place.
        Overloaded: too many large ones wait to be parsed.
    """
    body = text.encode(errors="surrogatepass")
    document = heavy.run(len(body), lambda: parse(body, place))
    try:
        return check(Parameters, document, strict=False)
    except InvalidRequest as error:
        message, param = f"{place}: {error}", f"{place}.{error.param}" if error.param else place
        raise InvalidRequest(message, param=param, code=error.code) from None


def _generate(
    tensor: Elements,
    options: Parameters,
    loaded: GenerativeModel,
    models: Models,
    caller: Caller,
) -> list[Output]:
    """Continue the texts; the outputs have the shape of the input."""
    texts = tensor.texts()
    done = begin([(texts, options)], loaded, models, caller).run()
    pairs = zip(texts.values(), done, strict=True)
    columns: list[Any] = [
        [options.text_output(prompt, each.text) for prompt, each in pairs],
        [each.finish_reason for each in done],
        [each.prompt_tokens for each in done],
        [each.completion_tokens for each in done],
    ]
    return [
        {"name": each["name"], "datatype": each["datatype"], "shape": tensor.shape, "data": column}
        for each, column in zip(_TEXT_OUTPUTS, columns, strict=True)
    ]


def _embed(
    tensor: Elements,
    options: Parameters,
    loaded: EmbeddingModel,
    models: Models,
    caller: Caller,
) -> list[Output]:
    """Embed the texts.

    Raises:
        InvalidRequest: there are options, which are for text.
    """
    if given := _given(options):
        message = f"{given[0]}: a model that makes embeddings takes no options"
        raise InvalidRequest(message, param=given[0])
    texts, cut = tensor.texts(), Cut(loaded, truncate=False)
    ids = encode_texts(loaded, list(texts.values()), list(texts), caller, cut)
    vectors = EmbeddingJob(loaded, ids, models.metrics, caller).run()
    return [
        {
            "name": "embedding",
            "datatype": "FP32",
            "shape": [len(vectors), loaded.width],
            "data": list(chain.from_iterable(vectors)),
        }
    ]


OPERATIONS: tuple[Operation[Any], ...] = tuple(
    for_each_version(
        lambda suffix, path: Operation(
            f"infer{suffix}",
            "Continue texts, or embed them, as the Open Inference Protocol has it",
            infer,
            path=f"{path}/infer",
            body=InferBody,
            answer=Inferred,
            waits=True,
            error_form=MESSAGE_ALONE,
        )
    )
)
