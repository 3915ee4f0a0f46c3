"""What TensorFlow Serving says of a model's versions.

The wire format follows tensorflow/serving's `apis/get_model_status.proto`, as JSON.
"""

from collections.abc import Iterable
from typing import Literal

from typing_extensions import TypedDict

from gemma_server.serving.version import ServableVersion


class Outcome(TypedDict):
    """Why a version has ended, if it has failed."""

    error_code: Literal["OK", "INTERNAL"]
    error_message: str


class VersionStatus(TypedDict):
    """One version."""

    version: str  # a whole number
    state: Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    status: Outcome


def statuses(versions: Iterable[ServableVersion]) -> list[VersionStatus]:
    """The status of each, in their order."""
    return [
        {
            "version": str(each.number),
            "state": each.state.value,
            "status": {
                "error_code": "INTERNAL" if each.error else "OK",
                "error_message": each.error,
            },
        }
        for each in versions
    ]
