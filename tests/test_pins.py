"""Which parts of libraries we lean on that they promise nobody, and that versions are capped there.

A new version of gunicorn or jax that moves one of them fails here, by name, instead of somewhere in
a server that looks well.
"""

import re
import tomllib
from pathlib import Path

import pytest

from gemma_server.server.http.request_head import PlainParser, PlainRequest
from gemma_server.server.http.worker import HttpWorker
from gemma_server.server.worker import ModelWorker
from tests.test_imports import MODULES, imports_of

ROOT = Path(__file__).parent.parent
CAPPED = {"gunicorn": "<28", "jax": "<0.11"}
OVERRIDDEN: dict[type, set[str]] = {
    HttpWorker: {
        *("_cap_keepalive", "accept", "enqueue_req", "finish_request", "handle"),
        *("handle_request", "murder_pending", "set_accept_enabled"),
    },
    ModelWorker: {"handle_error", "handle_exit", "handle_quit", "init_signals", "notify"},
    PlainRequest: {"parse"},
    PlainParser: {"mesg_class"},
}
PRIVATE_OF_JAX = {
    "executor.compile_cache": {"jax.experimental.serialize_executable", "jaxlib.version"},
    "native.library": {"jaxlib.version"},
}


@pytest.mark.parametrize("library", CAPPED)
def test_a_library_whose_private_parts_are_used_is_capped(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [wanted] = [line for line in project["dependencies"] if re.match(rf"{library}\W", line)]
    assert wanted.endswith(CAPPED[library])


@pytest.mark.parametrize("ours", OVERRIDDEN, ids=lambda ours: ours.__name__)
def test_what_overrides_gunicorn_still_has_something_to_override(ours: type) -> None:
    theirs = [base for base in ours.__mro__[1:] if base.__module__.startswith("gunicorn")]
    found = {
        name
        for name in vars(ours)
        if not name.startswith("__") and any(name in vars(base) for base in theirs)
    }
    assert found == OVERRIDDEN[ours]


def test_no_other_private_or_experimental_part_of_jax_is_used() -> None:
    private = ("jax.experimental", "jax._src", "jaxlib")
    found = {
        module: {name for name in imports_of(path) if name.startswith(private)}
        for module, path in MODULES.items()
    }
    assert {module: names for module, names in found.items() if names} == PRIVATE_OF_JAX
