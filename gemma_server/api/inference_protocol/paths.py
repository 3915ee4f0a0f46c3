"""The paths of a model, with and without its version."""

from collections.abc import Callable
from typing import Any

from gemma_server.api.operation import Operation

# What follows the name of an operation, and /v2/models/NAME.
_VERSIONS = {"": "", "_version": "/versions/{version}"}


def for_each_version(make: Callable[[str, str], Operation[Any]]) -> list[Operation[Any]]:
    """An operation for each way to name a model: `make` gets what ends its name, and the path."""
    return [make(suffix, f"/v2/models/{{name}}{path}") for suffix, path in _VERSIONS.items()]
