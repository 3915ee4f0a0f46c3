"""TensorFlow Serving's REST routes: /v1/models/NAME:predict, status and metadata.

The wire format follows tensorflow/serving's `model_servers/http_rest_api_handler.cc` and
`http_rest_api_util.cc`. `classify` and `regress` have no meaning for text.
"""

from collections.abc import Callable
from typing import Any, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.generation import Completion
from gemma_server.api.native.handlers import begin
from gemma_server.api.operation import Operation
from gemma_server.api.tensorflow.schema import SIGNATURE, PredictBody
from gemma_server.api.tensorflow.status import VersionStatus, statuses
from gemma_server.engine.request import FinishReason
from gemma_server.errors import ModelNotFound
from gemma_server.serving.models import Models

# The paths after /v1/models/NAME that name a version, or the newest.
_VERSIONS = {"": "", "_version": "/versions/{version}", "_label": "/labels/{label}"}


class ModelStatus(TypedDict):
    """The versions of a model, or the one that was asked for."""

    model_version_status: list[VersionStatus]


class ModelSpec(TypedDict):
    """Which model."""

    name: str
    signature_name: str
    version: str


class Metadata(TypedDict):
    """What a model takes and gives."""

    model_spec: ModelSpec
    metadata: dict[str, Any]


class Prediction(TypedDict):
    """The answer to one instance."""

    response: str
    finish_reason: FinishReason


class Columns(TypedDict):
    """The answers in columns."""

    response: list[str]
    finish_reason: list[FinishReason]


class Predictions(TypedDict):
    """The answers in the form of the request."""

    predictions: NotRequired[list[Prediction]]
    outputs: NotRequired[Columns]


def predict(body: PredictBody, models: Models, caller: Caller) -> Predictions:
    """Continue all texts, side by side."""
    loaded = caller.hold(models.resolve, caller.asked)
    asked = [(each.texts, each) for each in body.bodies()]
    job = begin(asked, loaded, models, caller)
    answers = list(map(_prediction, job.run()))
    if not body.in_columns:
        return {"predictions": answers}
    reasons = [answer["finish_reason"] for answer in answers]
    return {
        "outputs": {
            "response": [answer["response"] for answer in answers],
            "finish_reason": reasons,
        }
    }


def status(body: None, models: Models, caller: Caller) -> ModelStatus:
    """The state of one version, whatever it is."""
    versions = models.states(caller.params["name"])
    label, number = caller.params.get("label"), caller.params.get("version")
    if label is not None:
        number = str(models.labelled(caller.params["name"], label).number)
    found = [each for each in versions if str(each.number) == number]
    if not found:
        raise ModelNotFound(caller.asked)
    return {"model_version_status": statuses(found)}


def metadata(body: None, models: Models, caller: Caller) -> Metadata:
    """The version that answers, and the inputs and outputs of `:predict`."""
    loaded = caller.hold(models.resolve, caller.asked, waits=False)
    text = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1", "name": ""}]}}
    signature = {
        "inputs": {"prompt": {**text, "name": "prompt"}},
        "outputs": {
            "response": {**text, "name": "response"},
            "finish_reason": {**text, "name": "finish_reason"},
        },
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {
            "name": loaded.name,
            "signature_name": "",
            "version": str(loaded.version),
        },
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _prediction(completion: Completion) -> Prediction:
    return {"response": completion.text, "finish_reason": completion.finish_reason}


def _get(
    what: str,
    summary: str,
    handle: Callable[[None, Models, Caller], Any],
    answer: Any,
    end: str = "",
) -> list[Operation[Any]]:
    """A GET of each version's path, with an end."""
    return [
        Operation(
            f"tensorflow_{what}{suffix}",
            summary,
            handle,
            method="GET",
            path=f"/v1/models/{{name}}{path}{end}",
            answer=answer,
            error_form=MESSAGE_ALONE,
        )
        for suffix, path in _VERSIONS.items()
        if path or end  # without both it is OpenAI's
    ]


OPERATIONS: tuple[Operation[Any], ...] = (
    *(
        Operation(
            f"tensorflow_predict{suffix}",
            "Continue texts, as TensorFlow Serving is asked to",
            predict,
            path=f"/v1/models/{{name}}{path}:predict",
            body=PredictBody,
            answer=Predictions,
            waits=True,
            error_form=MESSAGE_ALONE,
        )
        for suffix, path in _VERSIONS.items()
    ),
    *_get("metadata", "What the model takes and gives", metadata, Metadata, "/metadata"),
    *_get("status", "The state of a version", status, ModelStatus),
)
